"""Levels: tasks open in order of difficulty, several at a time, as those before them are mastered."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from vla_rl.config import CurriculumConfig


class Levels:
    """Which tasks are open, and when the next level opens.

    The tasks are cut into `levels` levels of about equal size. A level takes the easiest of the tasks that are still
    closed, by recent success when it opens; of equals the first in the given order. The next level opens when the mean
    of the current level's last `level_window` batch rates is above `level_threshold`. A batch rate is the share of
    successes among the episodes of the current level that ended in one batch (an iteration). Levels never close again,
    and the last one stays current.
    """

    def __init__(self, config: CurriculumConfig, num_tasks: int) -> None:
        self.config, self.num_tasks = config, num_tasks
        self.open: list[list[int]] = []  # tasks by level, the current level last
        self._rates: deque[float] = deque(maxlen=config.level_window)  # of the current level
        self._batch: list[bool] = []  # how its episodes of the batch under way ended

    def start(self, successes: Float64[np.ndarray, " T"]) -> None:
        """Open the first level, if none is open yet."""
        if not self.open:
            self.open.append(self._next(successes))

    def weights(self, successes: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
        """`level_share` evenly over the current level, the rest evenly over all open tasks, current ones included."""
        levels = self.open or [self._next(successes)]
        everything = [task for level in levels for task in level]
        weights = np.zeros(self.num_tasks)
        weights[everything] = (1.0 - self.config.level_share) / len(everything)
        weights[levels[-1]] += self.config.level_share / len(levels[-1])
        return weights

    def observe(self, task: int, success: bool) -> None:
        """An episode ended."""
        if self.open and task in self.open[-1]:
            self._batch.append(success)

    def end_batch(self, successes: Float64[np.ndarray, " T"]) -> None:
        """A batch ended: note its rate, if it has one, and open the next level where that is due."""
        if self._batch:
            self._rates.append(float(np.mean(self._batch)))
        self._batch.clear()
        passed = (
            len(self._rates) == self.config.level_window
            and np.mean(self._rates) > self.config.level_threshold
        )
        if passed and sum(map(len, self.open)) < self.num_tasks:
            self.open.append(self._next(successes))
            self._rates.clear()

    def _next(self, successes: Float64[np.ndarray, " T"]) -> list[int]:
        """The tasks of the level that comes next."""
        opened = {task for level in self.open for task in level}
        closed = [task for task in range(self.num_tasks) if task not in opened]
        size = math.ceil(len(closed) / max(1, self.config.levels - len(self.open)))
        return sorted(closed, key=lambda task: -successes[task])[:size]

    def state_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "levels": [list(level) for level in self.open],
            "level_rates": list(self._rates),
            "level_batch": [int(success) for success in self._batch],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Runs of before had one task a level and no batch rates."""
        self.open = [
            [int(task) for task in level] if isinstance(level, list) else [int(level)]
            for level in state["levels"]
        ]
        self._rates.clear()
        self._rates.extend(float(rate) for rate in state.get("level_rates", []))
        self._batch = [bool(success) for success in state.get("level_batch", [])]
