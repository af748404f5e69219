"""Where a curve over training stands still, said with an interval."""

from __future__ import annotations

import functools
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

    Neighbouring points of a training curve hang together. With r the correlation of neighbouring residuals, where it is
    positive, n points count as n (1 - r) / (1 + r), both in the error and in Student's t (Santer et al. 2000,
    doi:10.1029/1999JD901105). So few points say little: the interval is then wide.

    Raises:
        ValueError: If there are fewer than three points, or one is not finite.
    """
    n = len(values)
    if n < 3 or not np.isfinite(values).all():
        raise ValueError(f"expected three finite points or more, got {n}")
    time = np.arange(n) - (n - 1) / 2
    weight = float(time @ time)
    slope = float(time @ values) / weight
    residuals = values - values.mean() - slope * time
    squares = float(residuals @ residuals)
    alike = float(residuals[1:] @ residuals[:-1]) / squares if squares > 0 else 0.0
    alike = min(max(alike, 0.0), 0.99)
    free = max(n * (1 - alike) / (1 + alike) - 2, 0.5)
    half = _quantile(confidence, round(free, 1)) * math.sqrt(squares / free / weight)
    return slope * (n - 1), (slope - half) * (n - 1), (slope + half) * (n - 1)


@functools.lru_cache(maxsize=4096)
def _quantile(confidence: float, free: float) -> float:
    """Of Student's t, both sides."""
    # a library of the extra `report`, and this module is imported by all
    from scipy.special import stdtrit  # pyright: ignore

    return float(stdtrit(free, 0.5 + confidence / 2))  # pyright: ignore


def plateaus(
    values: Float64[np.ndarray, " R"], window: int, tolerance: float, confidence: float = 0.95
) -> list[Plateau]:
    """The stretches of at least `window` points over which the curve changed by no more than `tolerance`.

    That has to be shown, not only not disproved: the whole interval of the change lies within +- tolerance, an
    equivalence test (Schuirmann 1987, doi:10.1007/BF01068419). So a noisy curve has fewer plateaus, not more. The
    longest stretch comes first, then the longest on each side of it; they do not overlap. Of a curve of more than
    200 points, stretches begin and end at every so-manieth of them.

    Raises:
        ValueError: If `window` is below 3, `tolerance` is not positive, or a value is not finite.
    """
    if window < 3 or not tolerance > 0 or not np.isfinite(values).all():
        raise ValueError(
            "expected a window of 3 or more, a positive tolerance and finite values, got "
            f"{window}, {tolerance} and {len(values)} values"
        )
    step = max(1, -(-len(values) // _ENDS))
    candidates: list[Plateau] = []
    for start in range(0, len(values) - window + 1, step):
        for end in range(len(values), start + window - 1, -step):
            change, low, high = change_over(values[start:end], confidence)
            if -tolerance <= low and high <= tolerance:
                mean = float(values[start:end].mean())
                candidates.append(Plateau(start, end - 1, change, low, high, mean))
                break
    return _apart(values, candidates, window, tolerance, confidence)


_ENDS = 200


def _apart(
    values: Float64[np.ndarray, " R"],
    candidates: list[Plateau],
    window: int,
    tolerance: float,
    confidence: float,
) -> list[Plateau]:
    """The longest candidate, and what is found to its left and to its right."""
    if not candidates:
        return []
    best = max(candidates, key=lambda plateau: plateau.end - plateau.start)
    left = plateaus(values[: best.start], window, tolerance, confidence)
    right = plateaus(values[best.end + 1 :], window, tolerance, confidence)
    shift = best.end + 1
    moved = [p._replace(start=p.start + shift, end=p.end + shift) for p in right]
    return [*left, best, *moved]
