"""Learning progress: how much the success of a task has changed of late, upwards or downwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float64

from vla_rl.config import CurriculumConfig


class Progress:
    """The difference of a fast and a slow average of each task's outcomes, as a distribution over tasks.

        q_j ~ |fast_j - slow_j|

    over the last `window` and the last `slow_window` episodes. What is solved and what is hopeless makes no progress
    and gets nothing; so does what stays at one half. Matiisen et al. 2017 (arXiv:1707.00183), Portelas et al. 2019
    (arXiv:1910.07224), Kanitscheider et al. 2021 (arXiv:2106.14876).

    A mean over n episodes is off by sqrt(s (1 - s) / n): with windows as short as these, slow progress cannot be told
    from chance, and tasks near one half get more than they should.
    """

    def __init__(self, config: CurriculumConfig, num_tasks: int) -> None:
        self.config = config
        self._outcomes = [deque[bool](maxlen=config.slow_window) for _ in range(num_tasks)]

    def observe(self, task: int, success: bool) -> None:
        """An episode ended."""
        self._outcomes[task].append(success)

    def changes(self) -> Float64[np.ndarray, " T"]:
        """Fast minus slow average of each task; NaN before it has been played `slow_window` times."""
        return np.array([self._change(outcomes) for outcomes in self._outcomes])

    def _change(self, outcomes: deque[bool]) -> float:
        if len(outcomes) < self.config.slow_window:
            return np.nan
        recent = list(islice(reversed(outcomes), self.config.window))
        return float(np.mean(recent) - np.mean(outcomes))

    def weights(self) -> Float64[np.ndarray, " T"]:
        """Sums to 1. A task that is not known yet gets as much as the one with the most progress."""
        changes = np.abs(self.changes())
        unknown = np.isnan(changes)
        most = changes[~unknown].max(initial=0.0)
        return in_proportion(np.where(unknown, most or 1.0, changes))

    def state_dict(self) -> dict[str, Any]:
        """The outcomes that are remembered, as JSON."""
        return {"progress": [[int(x) for x in outcomes] for outcomes in self._outcomes]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; from a run that did not remember them, with what it did remember."""
        for outcomes, saved in zip(
            self._outcomes, state.get("progress", state["history"]), strict=True
        ):
            outcomes.clear()
            outcomes.extend(bool(x) for x in saved)


def in_proportion(weights: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
    """A distribution in proportion to weights of 0 or more; uniform where all are 0."""
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1.0 / len(weights))
