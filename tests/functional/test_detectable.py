"""What n episodes can tell from a published rate, and how surprising a trial's changes are."""

from __future__ import annotations

import math

import pytest

from vla_rl.functional import detectable_rates, sign_test, wilson_interval
from vla_rl.functional.detectable import binomial_probability


def test_one_episode_by_hand() -> None:
    """Wilson's interval of 0 of 1 ends at 0.793: a failure alone tells, with 80 % where one success in five is left."""
    assert wilson_interval(0, 1).high == pytest.approx(0.7935, abs=1e-3)
    low, high = detectable_rates(0.847, 1)
    assert (low, high) == (pytest.approx(0.2, abs=1e-3), 1.0)


def test_more_episodes_tell_nearer_rates() -> None:
    few, many = detectable_rates(0.847, 50), detectable_rates(0.847, 500)
    assert few.low < many.low < 0.847 < many.high < few.high
    assert many.low == pytest.approx(0.79, abs=0.02)


def test_what_is_told_is_told_as_often_as_promised() -> None:
    low, _ = detectable_rates(0.5, 40)
    intervals = [wilson_interval(s, 40) for s in range(41)]
    told = [s for s, (a, b) in enumerate(intervals) if not a <= 0.5 <= b]
    assert sum(binomial_probability(s, 40, low) for s in told) >= 0.8
    assert sum(binomial_probability(s, 40, low + 0.01) for s in told) < 0.8


def test_probabilities_sum_to_one() -> None:
    for rate in (0.0, 0.03, 0.5, 1.0):
        assert math.fsum(binomial_probability(s, 12, rate) for s in range(13)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("better", "worse", "chance"), [(0, 0, 1), (7, 0, 1 / 128), (3, 1, 5 / 16), (0, 3, 1)]
)
def test_the_sign_test(better: int, worse: int, chance: float) -> None:
    assert sign_test(better, worse) == pytest.approx(chance)


def test_no_counts_and_no_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one episode"):
        detectable_rates(0.5, 0)
    with pytest.raises(ValueError, match="expected shares"):
        detectable_rates(84.7, 10)
    with pytest.raises(ValueError, match="counts"):
        sign_test(-1, 2)
