"""Evaluated episodes played again with a witness: what happened to their objects, and what it looked like.

Simulators are deterministic, so the recorded tokens give the very same episode. It is checked that it ends as it was
recorded; nothing is traced while a policy plays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vla_rl.envs.trace import EpisodeTrace, Moment, Traced
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.videos import require_same_end
from vla_rl.policies.policy import Policy


def trace_episode(env: Any, record: EpisodeRecord, policy: Policy) -> EpisodeTrace | None:
    """The trace of a recorded episode; None if the simulator tells nothing.

    RuntimeError where the episode ends otherwise than recorded.
    """
    if not isinstance(env, Traced):
        return None
    env.reset(record.spec)  # type: ignore[attr-defined]
    moments: list[Moment] = [env.moment()]
    success, steps = False, 0
    for actions in decoded(policy, record.tokens):
        _, success, _, taken = env.step(actions, on_frame=lambda: moments.append(env.moment()))  # type: ignore[attr-defined]
        steps += taken
    require_same_end(record, success, steps)
    return EpisodeTrace.of(env.traced_goals(), moments)


def decoded(policy: Policy, tokens: Sequence[Sequence[int]]) -> np.ndarray:
    """The actions of each turn, [T, C, A], in the simulator's units."""
    if not tokens:
        return np.zeros((0, policy.action_chunk, policy.action_dim), np.float32)
    return policy.decode_actions(torch.tensor([list(row) for row in tokens]))
