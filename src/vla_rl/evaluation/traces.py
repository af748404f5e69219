"""Evaluated episodes played again with a witness: what happened to their objects, and what it looked like.

Simulators are deterministic, so the recorded tokens give the very same episode. It is checked that it ends as it was
recorded; nothing is traced while a policy plays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vla_rl.envs.trace import EpisodeTrace, Moment, telling
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.videos import require_same_end
from vla_rl.policies.policy import Policy, decoded


def trace_episode(env: Any, record: EpisodeRecord, policy: Policy) -> EpisodeTrace | None:
    """The trace of a recorded episode; None if the simulator tells nothing.

    RuntimeError where the episode ends otherwise than recorded.
    """
    env.reset(record.spec)
    witness = telling(env)
    if witness is None:
        return None
    moments: list[Moment] = [witness.moment()]
    success, steps = False, 0
    for actions in _actions(policy, record.tokens, env.instruction):
        _, success, _, taken = env.step(actions, on_frame=lambda: moments.append(witness.moment()))
        steps += taken
    require_same_end(record, success, steps)
    return EpisodeTrace.of(witness.traced_goals(), moments)


def _actions(policy: Policy, tokens: Sequence[Sequence[int]], instruction: str) -> np.ndarray:
    """The actions of each turn, [T, C, A], in the simulator's units."""
    if not tokens:
        return np.zeros((0, policy.action_chunk, policy.action_dim), np.float32)
    rows = torch.tensor([list(row) for row in tokens])
    return decoded(policy, rows, [instruction] * len(tokens))
