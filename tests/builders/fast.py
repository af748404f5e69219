"""Policies that write FAST tokens, and the smooth moves that their codes are learned from."""

from __future__ import annotations

import numpy as np

from builders.policies import INSTRUCTIONS, narrow_model
from vla_rl.config import CriticConfig, LoraConfig, PolicyConfig
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.policies.fast.actions import FastTokens
from vla_rl.policies.fast.tokenizer import fit
from vla_rl.policies.openvla.config_files import with_action_bins

HORIZON, SIZE = 4, 4


def smooth_moves(count: int = 200, seed: int = 0) -> np.ndarray:
    """Chunks (count, 4, 4) of actions in -1..1 that change little from step to step."""
    rng = np.random.default_rng(seed)
    return np.clip(np.cumsum(rng.normal(0, 0.3, (count, HORIZON, SIZE)), 1), -1, 1)


def fast_tokens() -> FastTokens:
    """60 codes at most, and room for one token more than the longest of the moves takes."""
    tokenizer = fit(smooth_moves(), 60, 5.0)
    return FastTokens(tokenizer, max(map(len, tokenizer.encode(smooth_moves()))) + 2)


def make_fast_policy(
    critic: str = "separate", lora: LoraConfig | None = None, seed: int = 0
) -> OpenVLAPolicy:
    """A fresh narrow policy on the CPU, for actions in [-1, 1]."""
    fast = fast_tokens()
    config = PolicyConfig(critic=CriticConfig(kind=critic), lora=lora, device="cpu")  # type: ignore[arg-type]
    return OpenVLAPolicy.create(
        with_action_bins(narrow_model(), fast), INSTRUCTIONS, identity_statistics("mt5", SIZE), SIZE, HORIZON,
        config, seed, fast,
    )  # fmt: skip


def ending_draws(rows: int, count: int, seed: int = 0) -> np.ndarray:
    """Uniforms by which row k of a policy that is nearly uniform ends at token k, and rows past `count` never."""
    draws = np.random.default_rng(seed).random((rows, count), np.float32) * np.float32(0.9)
    for k in range(min(rows, count)):
        draws[k, k] = 0.9999  # the end token is the last bin
    return draws
