"""Scorers of the dense reward: a learned reward model, and the simulator's own reward as an upper bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.model import ProcessRewardModel, probability
from vla_rl.types import Rollout

DecodeActions = Callable[[Int64[np.ndarray, "B K"]], Float32[np.ndarray, "B C A"]]


class RewardModelScorer:
    """A process reward model: its probability of the positive answer, in one batched call for each window."""

    def __init__(
        self, reward_model: ProcessRewardModel, folder: str, decode_actions: DecodeActions
    ) -> None:
        """`decode_actions` turns tokens into the actions that an action-conditioned judge looks at."""
        self.reward_model = reward_model
        self.folder = folder
        """Where the reward model in use came from: a refreshed one replaces the configured one."""
        self._decode_actions = decode_actions

    def use(self, reward_model: ProcessRewardModel, folder: str) -> None:
        """Ask this reward model from now on."""
        self.reward_model, self.folder = reward_model, folder

    def scores(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        flat = rollout.flat_observation()
        tokens = rollout.tokens.reshape(len(flat), -1)
        actions = self._decode_actions(tokens) if self.reward_model.sees_actions else None
        odds = self.reward_model.log_odds(flat.images, flat.instructions, actions)
        return probability(odds).reshape(rollout.rewards.shape)

    def following(self, rollout: Rollout) -> Float32[np.ndarray, " N"]:
        tasks = rollout.task_ids[-1].tolist()
        words = tuple(rollout.instructions[i] for i in tasks)
        return probability(self.reward_model.log_odds(rollout.next_images, words, None))

    def state_dict(self) -> dict[str, Any]:
        """The reward model itself lies in its folder."""
        return {"judge": self.folder}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["judge"] != self.folder:
            self.use(load_reward_model(state["judge"]), state["judge"])


class SimulatorScorer:
    """The simulator's own shaped reward, 0..1: it sees objects and goal, which nothing that learns may.

    A reference alone: what does not learn faster with it will not with a reward model either. The simulator speaks
    of the
    state after a turn; an episode's first image gets what is said after its first turn, so that one is progress 0.
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
