"""Where a curve over training stands still, said with an interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64


class Plateau(NamedTuple):
    """A stretch of a curve, first and last point included, that stands still."""

    start: int
    end: int
    change: float  # over the stretch, by a straight line
    low: float  # its 95 % interval
    high: float
    mean: float


def change_over(
    values: Float64[np.ndarray, " n"], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Change over a stretch by a least-squares line, and its interval: (change, low, high).

    Neighbouring points of a training curve hang together, so the error of the slope is that of Newey and West 1987
    (doi:10.2307/1913610) with floor(4 (n / 100)^(2/9)) lags, n / (n - 2) for few points, and Student's t.

    Raises:
        ValueError: If there are fewer than three points, or one is not finite.
    """
    from scipy.stats import t as student  # of the extra `report`

    n = len(values)
    if n < 3 or not np.isfinite(values).all():
        raise ValueError(f"expected three finite points or more, got {n}")
    time = np.arange(n) - (n - 1) / 2
    weight = float(time @ time)
    slope = float(time @ values) / weight
    scores = time * (values - values.mean() - slope * time)
    total = float(scores @ scores)
    lags = min(math.floor(4 * (n / 100) ** (2 / 9)), n - 2)
    for lag in range(1, lags + 1):
        total += 2 * (1 - lag / (lags + 1)) * float(scores[lag:] @ scores[:-lag])
    error = math.sqrt(max(total, 0.0) * n / (n - 2)) / weight
    half = float(student.ppf(0.5 + confidence / 2, n - 2)) * error
    return slope * (n - 1), (slope - half) * (n - 1), (slope + half) * (n - 1)


def plateaus(
    values: Float64[np.ndarray, " R"], window: int, tolerance: float, confidence: float = 0.95
) -> list[Plateau]:
    """The stretches of at least `window` points over which the curve changed by no more than `tolerance`.

    That has to be shown, not only not disproved: the whole interval of the change lies within +- tolerance, an
    equivalence test (Schuirmann 1987, doi:10.1007/BF01068419). So a noisy curve has fewer plateaus, not more. Stretches
    are found from the left, each as long as it can be, and do not overlap.

    Raises:
        ValueError: If `window` is below 3, `tolerance` is not positive, or a value is not finite.
    """
    if window < 3 or not tolerance > 0:
        raise ValueError(
            f"expected a window of 3 or more and a positive tolerance, got {window} and {tolerance}"
        )
    found: list[Plateau] = []
    start = 0
    while start + window <= len(values):
        best: Plateau | None = None
        for end in range(start + window, len(values) + 1):
            change, low, high = change_over(values[start:end], confidence)
            if -tolerance <= low and high <= tolerance:
                best = Plateau(start, end - 1, change, low, high, float(values[start:end].mean()))
            elif best is not None or end - start >= 2 * window:
                break
        if best is None:
            start += 1
        else:
            found.append(best)
            start = best.end + 1
    return found
