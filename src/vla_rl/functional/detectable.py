"""What a success rate measured in n episodes can tell from a published one."""

from __future__ import annotations

import math

from vla_rl.functional.intervals import Interval, wilson_interval

_STEPS = 1000
"""Rates that are tried: steps of a tenth of a point."""


def detectable_rates(published: float, episodes: int, power: float = 0.8) -> Interval:
    """The nearest true rates below and above `published` that n episodes would tell from it.

    A rate p is told from it where P(published outside Wilson's 95 % interval of s of n) >= power, s ~ Bin(n, p). 0 or 1
    where none on that side is.

    Raises:
        ValueError: If published or power is not a share, or episodes is below 1.
    """
    if not (0 <= published <= 1 and 0 < power < 1 and episodes >= 1):
        raise ValueError(
            f"expected shares and at least one episode, got {published}, {power} and {episodes}"
        )
    intervals = [wilson_interval(s, episodes) for s in range(episodes + 1)]
    told = [s for s, found in enumerate(intervals) if not found.low <= published <= found.high]
    below = _nearest(published, episodes, power, told, -1)
    above = _nearest(published, episodes, power, told, 1)
    return Interval(0.0 if below is None else below, 1.0 if above is None else above)


def _nearest(
    published: float, episodes: int, power: float, told: list[int], way: int
) -> float | None:
    at = round(published * _STEPS) + way
    while 0 <= at <= _STEPS:
        if sum(binomial_probability(s, episodes, at / _STEPS) for s in told) >= power:
            return at / _STEPS
        at += way
    return None


def binomial_probability(successes: int, trials: int, rate: float) -> float:
    """C(n, s) p^s (1 - p)^(n - s)."""
    if rate in (0.0, 1.0):
        return float(successes == round(rate * trials))
    choices = math.lgamma(trials + 1) - math.lgamma(successes + 1)
    choices -= math.lgamma(trials - successes + 1)
    logs = successes * math.log(rate) + (trials - successes) * math.log1p(-rate)
    return math.exp(choices + logs)


def sign_test(better: int, worse: int) -> float:
    """Chance of at least `better` of better + worse changes being for the better, if both were as likely.

    One-sided exact test of McNemar, for outcomes of the same episodes before and after. No change at all: 1.

    Raises:
        ValueError: If a count is negative.
    """
    if better < 0 or worse < 0:
        raise ValueError(f"expected counts, got {better} and {worse}")
    changed = better + worse
    if changed == 0:
        return 1.0
    return math.fsum(binomial_probability(s, changed, 0.5) for s in range(better, changed + 1))
