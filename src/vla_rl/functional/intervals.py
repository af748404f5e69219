"""How far a measured success rate can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A confidence interval, ends included."""

    low: float
    high: float


class PairedDifference(NamedTuple):
    """Mean of after - before over pairs, with its uncertainty."""

    mean: float
    standard_error: float
    low: float
    high: float
    pairs: int


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a success probability.

        (s + z^2 / 2) / (n + z^2)  +-  z / (n + z^2) * sqrt(s (n - s) / n + z^2 / 4)

    Wilson 1927. Unlike mean +- error it stays inside [0, 1] and does not shrink to a point at 0 or n successes.
    No trials say nothing: (0, 1).

    Raises:
        ValueError: If not 0 <= successes <= trials, or confidence is not inside (0, 1).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    z = normal_quantile(confidence)
    if trials == 0:
        return Interval(0.0, 1.0)
    total = trials + z * z
    centre = (successes + z * z / 2) / total
    half = z / total * math.sqrt(successes * (trials - successes) / trials + z * z / 4)
    # exact at the ends, where rounding would leave 1e-17 or 1 - 1e-16
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(low, high)


def paired_difference(
    before: Sequence[int] | Sequence[float],
    after: Sequence[int] | Sequence[float],
    confidence: float = 0.95,
) -> PairedDifference:
    """Improvement measured on the same initial states before and after.

        d_i = after_i - before_i,     mean +- z s / sqrt(n),     s^2 = sum (d_i - mean)^2 / (n - 1)

    Pairing removes what makes some initial states easy and others hard, so the error is smaller than that of two
    separate rates. Normal approximation, cut to [-1, 1]; with a few pairs that all agree it claims
    too much. Where no pair differs, s would be 0 and the interval a point: it is then taken as if one more pair had
    improved and one had got worse (Bonett and Price 2012, doi:10.3102/1076998611411915). The spread of a single pair is
    unknown: its largest possible value, 1, is taken.

    Args:
        before: Outcome of each initial state, a success or a number in [0, 1].
        after: The same states in the same order.
        confidence: Inside (0, 1).

    Raises:
        ValueError: If there are no pairs, the lengths differ, or an outcome is outside [0, 1].
    """
    if len(before) != len(after) or not before:
        raise ValueError(
            "expected the same initial states before and after, at least one; "
            f"got {len(before)} before and {len(after)} after"
        )
    if not all(0 <= outcome <= 1 for outcome in (*before, *after)):
        raise ValueError("outcomes must be successes or numbers in [0, 1]")
    z = normal_quantile(confidence)
    differences = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    n = len(differences)
    mean = math.fsum(differences) / n
    error = 1.0
    if n > 1 and not any(differences):
        error = math.sqrt(2) / (n + 2)
    elif n > 1:
        error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return PairedDifference(mean, error, max(-1.0, mean - z * error), min(1.0, mean + z * error), n)


def normal_quantile(confidence: float) -> float:
    """The z with P(|Z| <= z) = confidence for a standard normal Z: 1.96 at 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie inside (0, 1), got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Student's interval for the mean of what independent values, such as runs of several seeds, are drawn from.

        mean +- t s / sqrt(n),     s^2 = sum (x_i - mean)^2 / (n - 1),     t of n - 1 degrees of freedom

    None for fewer than two values: one says nothing of how far others would lie. Of two or three it is wide, and
    rightly so. It is not cut to any range.

    Raises:
        ValueError: If a value is not finite, or confidence is not inside (0, 1).
    """
    if not all(math.isfinite(value) for value in values):
        raise ValueError("expected finite values")
    n = len(values)
    if n < 2:
        normal_quantile(confidence)
        return None
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = student_quantile(confidence, n - 1) * error
    return Interval(mean - half, mean + half)


def student_quantile(confidence: float, freedom: int) -> float:
    """The t with P(|T| <= t) = confidence for Student's T of `freedom` degrees: 12.71 at 0.95 and 1, 4.30 at 2.

    Bisection of the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4.

    Raises:
        ValueError: If confidence is not inside (0, 1), or freedom is below 1.
    """
    low = normal_quantile(confidence)  # Student's tails are heavier
    if freedom < 1:
        raise ValueError(f"expected at least 1 degree of freedom, got {freedom}")
    high = 2 * low + 1
    while _student_within(high, freedom) < confidence:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (
            (middle, high) if _student_within(middle, freedom) < confidence else (low, middle)
        )
    return high


def _student_within(t: float, freedom: int) -> float:
    """P(|T| <= t)."""
    angle = math.atan(t / math.sqrt(freedom))
    square = math.cos(angle) ** 2
    if freedom % 2:
        term, total = math.cos(angle), 0.0
        for k in range(1, freedom - 1, 2):
            total += term
            term *= square * (k + 1) / (k + 2)
        return 2 / math.pi * (angle + math.sin(angle) * total)
    term, total = 1.0, 0.0
    for k in range(0, freedom - 1, 2):
        total += term
        term *= square * (k + 1) / (k + 2)
    return math.sin(angle) * total
