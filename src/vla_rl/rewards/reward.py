"""The reward-model interface, the sparse case, and the bound that keeps dense rewards below success."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float32

from vla_rl.config import require
from vla_rl.types import Rollout

SUCCESS_REWARD = 1.0
"""What the simulator pays for a success, once, on the turn that reaches it."""


class RewardFunction(Protocol):
    """Dense rewards for the turns of a window."""

    @property
    def in_return(self) -> bool:
        """Whether they are part of the return that the critic learns; else they go into the advantages alone."""
        ...

    def score(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        """Dense reward of each turn, to be added to `rollout.rewards`, which it does not contain.

        Over any episode the sum must stay below SUCCESS_REWARD: see `bound_dense_rewards`.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """What is worth logging of the last window."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON: what the next window's rewards depend on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class SuccessReward:
    """Success is the only reward; the dense part is zero."""

    in_return = True

    def score(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        """Zeros."""
        return np.zeros(rollout.rewards.shape, dtype=np.float32)

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def bound_dense_rewards(
    dense: Float32[np.ndarray, "M N"],
    ended: Bool[np.ndarray, "M N"],
    running: Float32[np.ndarray, " N"],
    limit: float = 0.5,
) -> tuple[Float32[np.ndarray, "M N"], Float32[np.ndarray, " N"]]:
    """Hold the total dense reward of every episode inside [-limit, limit].

        c_t = clip(c_{t-1} + r_t, -limit, limit),     bounded r_t = c_t - c_{t-1}

    c is the episode's running total, 0 at its start. Rewards pass unchanged until the budget is spent, so that
    rare large ones (a milestone) are not flattened for the sake of many small ones. The discounted total is
    bounded alike: sum gamma^t r_t = sum (gamma^t - gamma^{t+1}) c_t + gamma^T c_T has weights that sum to
    at most 1. Without a bound, 0.1 a turn over 200 turns at gamma 0.99 is worth 8.7 and success 1.0.

    What is left from a turn in mid-episode, c_T - c_{t-1}, is at most `limit` for rewards that are never negative
    and twice that for signed ones. A late success is discounted too: where gamma^horizon falls to `limit`,
    choose a smaller one.

    Args:
        dense: The model's rewards, finite.
        ended: The turn ended its episode (success, time limit, or lost).
        running: c of the episodes that run into this window, zeros for the first; episodes cross window edges.
        limit: At least 0 and below SUCCESS_REWARD.

    Returns:
        (bounded rewards, `running` for the next window).

    Raises:
        ConfigError: If `limit` is out of range.
        ValueError: If a reward is not finite.
    """
    require(
        0 <= limit < SUCCESS_REWARD,
        f"the limit of an episode's dense reward must lie in [0, {SUCCESS_REWARD:g}), below the reward of success; "
        f"got {limit:g}",
    )
    if not np.isfinite(dense).all():
        raise ValueError(
            f"the reward model gave {int((~np.isfinite(dense)).sum())} rewards that are not finite"
        )
    total = running.astype(np.float64)
    bounded = np.empty_like(dense)
    for t, rewards in enumerate(dense):
        reached = np.clip(total + rewards, -limit, limit)
        bounded[t] = reached - total
        total = np.where(ended[t], 0.0, reached)
    return bounded, total.astype(np.float32)
