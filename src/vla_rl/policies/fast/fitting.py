"""A FAST action tokenizer for demonstrations: learned from them, or somebody else's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from vla_rl.config.demonstrations import FastConfig
from vla_rl.policies.action_tokens import ActionStatistics
from vla_rl.policies.fast.actions import FastTokens, normalized
from vla_rl.policies.fast.files import load_fast
from vla_rl.policies.fast.tokenizer import fit

LOG = logging.getLogger(__name__)


def fast_tokens(
    actions: Float32[np.ndarray, "N C A"],
    statistics: ActionStatistics,
    config: FastConfig,
    gripper: Literal["as-is", "openvla"] = "as-is",
) -> FastTokens:
    """What to write these demonstrations' turns in, and with how many tokens at most.

    actions: in the simulator's units. Raises UserError for a tokenizer that is missing, damaged or for another chunk,
    and for a vocabulary without room for the numbers that occur.
    """
    chunks = normalized(actions, statistics, gripper)
    if config.tokenizer:
        tokenizer = load_fast(Path(config.tokenizer), *actions.shape[1:])
    else:
        tokenizer = fit(chunks, config.vocabulary, config.scale)
    outside = tokenizer.outside(chunks)
    if outside:
        LOG.warning(
            "%s: %d of %d numbers of the demonstrations lie outside what this tokenizer can write, and become the "
            "nearest that it can: fit one to them (leave fast.tokenizer empty)", config.tokenizer, outside, chunks.size,
        )  # fmt: skip
    longest = max(len(row) for row in tokenizer.encode(chunks)) + 1
    return FastTokens(tokenizer, config.max_tokens or longest)
