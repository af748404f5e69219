"""The simulator's own shaped reward in a reward model's place: an upper bound, to learn whether one could help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla_rl.config import TrainConfig
from vla_rl.distributed.world import World
from vla_rl.envs.registry import benchmark, no_dense_reward
from vla_rl.policies.policy import Policy
from vla_rl.rewards.shaping import ShapedReward, shaped
from vla_rl.types import Rollout


class SimulatorScorer:
    """The simulator's own shaped reward, 0..1. It sees objects and goal, which nothing that learns may.

    It is a reference: what does not learn faster with it will not learn faster with a reward model. The simulator
    speaks of the state after a turn. An episode's first image gets what is said after its first turn, so that this turn
    is progress 0.
    """

    def __init__(self) -> None:
        self._last: Float32[np.ndarray, " N"] | None = None  # after the last turn; NaN: ended

    def scores(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        after = rollout.simulator_rewards
        assert after is not None, "the collector was not told to ask the simulator"
        before = np.empty_like(after)
        last = np.full(after.shape[1], np.nan, np.float32) if self._last is None else self._last
        for t, reached in enumerate(after):
            known = np.where(np.isnan(reached), last, reached)  # unknown: as before
            before[t] = np.nan_to_num(np.where(np.isnan(last), known, last))
            last = np.where(rollout.ended[t], np.nan, known)
        self._last = last
        return before

    def following(self, rollout: Rollout) -> Float32[np.ndarray, " N"]:
        """Read only where the last turn did not end its episode."""
        assert self._last is not None, "scores first"
        return np.nan_to_num(self._last)

    def state_dict(self) -> dict[str, Any]:
        if self._last is None:
            return {"last": None}
        return {"last": [None if np.isnan(score) else float(score) for score in self._last]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        last = state["last"]
        self._last = None if last is None else np.array(last, np.float32)


def simulator_reward(config: TrainConfig, policy: Policy, world: World) -> ShapedReward:
    """`reward.kind simulator`. UserError for a simulator without a dense reward of its own."""
    dense_reward_max(config)
    return shaped(SimulatorScorer(), config)


def dense_reward_max(config: TrainConfig) -> float | None:
    """What the simulator's own dense reward gives for a solved task; None where `config.reward` does not ask for it.

    UserError if it asks for it and the simulator has none.
    """
    if not config.reward.asks_simulator:
        return None
    most = benchmark(config.env.suite).dense_reward_max
    if most is None:
        raise no_dense_reward(config.env.suite)
    return most
