"""Scorers of the dense reward: a learned judge, and the simulator's own reward as an upper bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from vla_rl.rewards.process.loading import load_judge
from vla_rl.rewards.process.model import Judge, probability
from vla_rl.types import Rollout

DecodeActions = Callable[[Int64[np.ndarray, "B K"]], Float32[np.ndarray, "B C A"]]


class JudgeScorer:
    """A process reward model: its probability of the positive answer, in one batched call for each window."""

    def __init__(self, judge: Judge, folder: str, decode_actions: DecodeActions) -> None:
        """`decode_actions` turns tokens into the actions that an action-conditioned judge looks at."""
        self.judge = judge
        self.folder = folder
        """Where the judge in use came from: a refreshed one replaces the configured one."""
        self._decode_actions = decode_actions

    def use(self, judge: Judge, folder: str) -> None:
        """Ask this judge from now on."""
        self.judge, self.folder = judge, folder

    def scores(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        flat = rollout.flat_observation()
        tokens = rollout.tokens.reshape(len(flat), -1)
        actions = self._decode_actions(tokens) if self.judge.sees_actions else None
        odds = self.judge.log_odds(flat.images, flat.instructions, actions)
        return probability(odds).reshape(rollout.rewards.shape)

    def following(self, rollout: Rollout) -> Float32[np.ndarray, " N"]:
        tasks = rollout.task_ids[-1].tolist()
        words = tuple(rollout.instructions[i] for i in tasks)
        return probability(self.judge.log_odds(rollout.next_images, words, None))

    def state_dict(self) -> dict[str, Any]:
        """The judge itself lies in its folder."""
        return {"judge": self.folder}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["judge"] != self.folder:
            self.use(load_judge(state["judge"]), state["judge"])


class SimulatorScorer:
    """The simulator's own shaped reward, 0..1: it sees objects and goal, which nothing that learns may.

    A reference alone: what does not learn faster with it will not with a judge either. The simulator speaks of the
    state after a turn; an episode's first picture gets what is said after its first turn, so that one is progress 0.
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
