"""How success grows with the number of candidates: a straight line in log N, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64


class LogFit(NamedTuple):
    """success(N) = intercept + slope * log2 N, slope per doubling of N. Errors are standard errors."""

    intercept: float
    slope: float
    intercept_error: float
    slope_error: float
    slope_low: float  # 95 % interval
    slope_high: float

    def at(self, size: int | float) -> float:
        """The line's success with `size` candidates; outside 0..1 it has left its range."""
        return self.intercept + self.slope * float(np.log2(size))


def fit_log(
    sizes: Sequence[int],
    outcomes: Bool[np.ndarray, "S E"],
    *,
    resamplings: int = 2000,
    seed: int = 0,
) -> LogFit:
    """Weighted least squares of success on log2 N; errors from a bootstrap over episodes.

        minimise  sum_N w_N (p_N - a - b log2 N)^2,    w_N = n / (q_N (1 - q_N)),    q_N = (s_N + 1) / (n + 2)

    with s_N successes of n episodes; q_N keeps the binomial variance from vanishing at 0 and n successes. The same
    episodes are played with every N, so their outcomes are correlated and the usual error of a fit, which takes them
    for independent, would be wrong: whole episodes are drawn with replacement instead, each with its outcomes at all N,
    and the line is fitted to each such sample (percentile interval, 95 %).

    Args:
        sizes: S numbers of candidates, at least two different ones.
        outcomes: Success of each of E episodes at each of them.
        resamplings: Bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: For fewer than two sizes, sizes below 1, no episodes, or shapes that do not fit.
    """
    if len(set(sizes)) < 2 or min(sizes) < 1:
        raise ValueError(f"a line needs two different numbers of candidates, got {list(sizes)}")
    if outcomes.shape[0] != len(sizes) or outcomes.shape[1] == 0:
        raise ValueError(
            f"expected outcomes of {len(sizes)} sizes and at least one episode, got {outcomes.shape}"
        )
    episodes = outcomes.shape[1]
    x = np.log2(np.asarray(sizes, dtype=np.float64))
    counts = outcomes.sum(1, dtype=np.int64)
    line = _lines(x, counts[:, None], episodes)[0]
    draws = np.random.default_rng(seed).multinomial(
        episodes, np.full(episodes, 1 / episodes), size=resamplings
    )
    lines = _lines(x, outcomes.astype(np.int64) @ draws.T, episodes)
    errors = lines.std(0, ddof=1)
    low, high = np.percentile(lines[:, 1], [2.5, 97.5])
    return LogFit(
        float(line[0]), float(line[1]), float(errors[0]), float(errors[1]), float(low), float(high)
    )


def _lines(
    x: Float64[np.ndarray, " S"], successes: Int64[np.ndarray, "S R"], episodes: int
) -> Float64[np.ndarray, "R 2"]:
    """Intercept and slope of the weighted line through each column."""
    rates = successes / episodes
    smoothed = (successes + 1) / (episodes + 2)
    weights = episodes / (smoothed * (1 - smoothed))
    weights = weights / weights.sum(0)
    mean_x, mean_y = (weights * x[:, None]).sum(0), (weights * rates).sum(0)
    across = x[:, None] - mean_x
    slope = (weights * across * (rates - mean_y)).sum(0) / (weights * across**2).sum(0)
    return np.stack([mean_y - slope * mean_x, slope], axis=1)
