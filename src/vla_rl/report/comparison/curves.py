"""Success while practising, against episodes and against minutes, of runs that need not have practised alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from vla_rl.report.run_data import Run

Cost = Literal["episodes", "minutes"]
COSTS: tuple[Cost, ...] = ("episodes", "minutes")
WINDOW = 10
"""Iterations of a running mean, where the runs are long enough."""
_GRID = 200

Values = Float64[np.ndarray, " I"]


class Point(NamedTuple):
    """Success on held-out states when so much had been spent."""

    spent: float
    success: float
    iteration: int


@dataclass(frozen=True)
class Curve:
    """Sampled success in training after each iteration, as the mean over tasks, and what had been spent by then.

    Iterations before every task has been played, and those whose success is not known, are left out.
    """

    episodes: Values
    minutes: Values
    success: Values  # in 0..1
    iterations: int  # of the run, those that are left out among them

    def __len__(self) -> int:
        return len(self.success)

    def spent(self, cost: Cost) -> Values:
        """The horizontal axis."""
        return self.episodes if cost == "episodes" else self.minutes

    def running(self, window: int) -> Values:
        """Means over the last `window` iterations, from the window-th on."""
        if len(self) < window:
            return np.zeros(0)
        return np.convolve(self.success, np.full(window, 1 / window), "valid")

    def smoothed(self, window: int, cost: Cost) -> tuple[Values, Values]:
        """What had been spent, and the running mean; both empty for a run that is too short."""
        running = self.running(window)
        spent = self.spent(cost)[window - 1 :] if len(running) else np.zeros(0)
        known = np.isfinite(spent)
        return spent[known], running[known]

    def needed(self, success: float, window: int, cost: Cost) -> float:
        """What had been spent when the running mean first was at least `success`; infinity if it never was."""
        spent, running = self.smoothed(window, cost)
        reached = np.flatnonzero(running >= success)
        return float(spent[reached[0]]) if len(reached) else math.inf

    def last(self, window: int) -> float:
        """The running mean at the end; NaN for a run that is too short."""
        running = self.running(window)
        return float(running[-1]) if len(running) else math.nan


def curve_of(run: Run) -> Curve:
    """A run's curve. A task that an iteration did not play keeps its last success."""
    metrics = run.metrics
    count = len(metrics)
    nothing = np.full(count, np.nan)
    tasks = [_rates(values) for values in metrics.under("success/").values()]
    success = np.mean([_held(values) for values in tasks], axis=0) if tasks else nothing
    if not tasks and (overall := metrics.get("rollout/success_rate")) is not None:
        success = _rates(overall)
    episodes = metrics.get("total/episodes")
    seconds = metrics.get("total/train_seconds")
    seconds = metrics.get("wall_seconds") if seconds is None else seconds
    known = np.isfinite(success)
    for spent in (episodes, seconds):
        if spent is not None:  # what was spent only ever grows; a damaged line is no step back
            reached = np.fmax.accumulate(np.where(np.isnan(spent), -np.inf, spent))
            known &= np.isfinite(spent) & (spent >= reached)
    return Curve(
        episodes=(nothing if episodes is None else episodes)[known],
        minutes=(nothing if seconds is None else seconds / 60)[known],
        success=success[known],
        iterations=count,
    )


def _rates(values: Values) -> Values:
    """Without what is no share."""
    return np.where((values >= 0) & (values <= 1), values, np.nan)


def _held(values: Values) -> Values:
    """Each value, or the last one known before it."""
    last = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), -1))
    return np.where(last >= 0, values[np.maximum(last, 0)], np.nan)


def window_for(curves: Sequence[Curve]) -> int:
    """Iterations of a running mean that fits them all: ten, of short runs half of the shortest's."""
    shortest = min((len(curve) for curve in curves if len(curve)), default=0)
    return max(1, min(WINDOW, shortest // 2))


def common_range(curves: Sequence[Curve], window: int, cost: Cost) -> tuple[float, float] | None:
    """From where the last of the running means begins to where the first of them ends; None if they do not overlap."""
    ends = [spent[[0, -1]] for c in curves if len(spent := c.smoothed(window, cost)[0])]
    if not ends:
        return None
    low, high = max(end[0] for end in ends), min(end[1] for end in ends)
    return (float(low), float(high)) if high > low else None


class Band(NamedTuple):
    """The mean of several running means over the range that they share, and the lowest and highest of them."""

    spent: Values
    mean: Values
    low: Values
    high: Values


def band(curves: Sequence[Curve], window: int, cost: Cost) -> Band | None:
    """None where the curves have no range in common."""
    shared = common_range(curves, window, cost)
    if shared is None:
        return None
    spent = np.linspace(*shared, _GRID)
    found = [curve.smoothed(window, cost) for curve in curves]
    values = np.array([np.interp(spent, x, y) for x, y in found if len(x)])
    return Band(spent, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def area(curve: Curve, window: int, cost: Cost, shared: tuple[float, float]) -> float | None:
    """Mean success over `shared`, the area under the running mean over its width; None outside of the curve."""
    spent, running = curve.smoothed(window, cost)
    if not len(spent) or spent[0] > shared[0] or spent[-1] < shared[1]:
        return None
    grid = np.linspace(*shared, 4 * _GRID + 1)
    return float(np.trapezoid(np.interp(grid, spent, running), grid) / (shared[1] - shared[0]))


def held_out_during(run: Run, cost: Cost, states: int) -> list[Point]:
    """Greedy success on held-out states before, during and after practice, of evaluations of `states` episodes."""
    column = run.metrics.get("total/episodes" if cost == "episodes" else "total/train_seconds")
    scale = 1.0 if cost == "episodes" else 60.0
    found: list[Point] = []
    before, after = (run.evaluations.get((stage, "greedy")) for stage in ("before", "after"))
    if before is not None and before.overall.episodes == states:
        found.append(Point(0.0, before.overall.rate, 0))
    if column is None:
        return found
    for iteration, rate in sorted(run.during.items()):
        place = np.flatnonzero(run.metrics.index == iteration)
        if len(place) and rate.episodes == states and np.isfinite(column[place[0]]):
            found.append(Point(float(column[place[0]]) / scale, rate.rate, iteration))
    if after is not None and after.overall.episodes == states:
        last = int(run.metrics.index[-1])
        found = [point for point in found if point.iteration != last]
        found.append(Point(float(np.nanmax(column)) / scale, after.overall.rate, last))
    return found
