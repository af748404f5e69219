"""From actions to the numbers of action coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Int64

from vla_rl.evaluation.coverage import Entropy, entropy_of, resampled_episodes
from vla_rl.functional.spread import cell_widths, effective_volume, spread_over_cells
from vla_rl.report.analysis.record import CoverageView, Estimate, PairSpread, Spread, Stage
from vla_rl.runtime.seeding import generator

Actions = tuple[Float64[np.ndarray, "m A"], Int64[np.ndarray, " m"]]
"""Actions, and the episode that each belongs to."""
_CELL = 2 / 255
"""Of a dimension that never moves: the cell of 256 bins on [-1, 1]."""


def coverage_view(
    states: str, actions: Mapping[Stage, Actions], episodes: int, seed: int
) -> CoverageView:
    """Entropies and volumes of both policies, or of the one there is. ValueError for too few actions."""
    smooth, bounds = _smooth(actions, seed)
    resamples = resampled_episodes(episodes, seed)
    dimensions = smooth["after"][0].shape[1]

    def entropies(columns: list[int]) -> dict[Stage, Entropy]:
        return {
            stage: entropy_of(values[:, columns], groups, resamples, bounds[:, columns])
            for stage, (values, groups) in smooth.items()
        }

    whole = entropies(list(range(dimensions)))
    spreads = {
        stage: _spread(entropy, len(smooth[stage][0]), bounds) for stage, entropy in whole.items()
    }
    pairs = []
    for first, second in itertools.combinations(range(dimensions), 2):
        both = entropies([first, second])
        pairs.append(
            PairSpread(
                first,
                second,
                _estimate(both["before"]) if "before" in both else None,
                _estimate(both["after"]),
                _difference(both),
            )
        )
    return CoverageView(
        "own" if states == "own" else "same",
        spreads.get("before"),
        spreads["after"],
        _difference(whole),
        tuple(pairs),
    )


def _smooth(
    actions: Mapping[Stage, Actions], seed: int
) -> tuple[dict[Stage, Actions], Float64[np.ndarray, "2 A"]]:
    """Actions are one of some hundred values in each dimension; here they lie somewhere within their cells.

    The cells are the same for both policies, so that the difference of their entropies does not depend on them. The
    simulator clips actions to [-1, 1]; the bounds are wider by half a cell on each side.
    """
    every = np.concatenate([values for values, _ in actions.values()])
    widths = cell_widths(every, _CELL)
    bounds = np.stack([-1 - widths / 2, 1 + widths / 2])
    smooth: dict[Stage, Actions] = {
        stage: (
            spread_over_cells(
                np.clip(values, -1, 1), widths, generator(seed, "coverage", "cells", stage)
            ),
            groups,
        )
        for stage, (values, groups) in actions.items()
    }
    return smooth, bounds


def _spread(entropy: Entropy, samples: int, bounds: Float64[np.ndarray, "2 A"]) -> Spread:
    volumes = [effective_volume(value, bounds) for value in (entropy.value, *entropy.interval)]
    return Spread(samples, _estimate(entropy), Estimate(*volumes))


def _estimate(entropy: Entropy) -> Estimate:
    return Estimate(entropy.value, *entropy.interval)


def _difference(entropies: Mapping[Stage, Entropy]) -> Estimate | None:
    if "before" not in entropies:
        return None
    value, interval = entropies["after"].less(entropies["before"])
    return Estimate(value, *interval) if math.isfinite(value) else None
