import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from vla_rl.functional import (
    mean_interval,
    paired_difference,
    student_quantile,
    wilson_interval,
)

Z2 = 1.959963984540054**2


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # 81 of 263: the example of Newcombe 1998 (Statistics in Medicine 17, table I), as 15/148, 0/20, 1/29
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - Z2 / (29 + Z2), 1.0),  # all: 1 - z^2 / (n + z^2)
    ],
)
def test_wilson_known(successes: int, trials: int, low: float, high: float):
    got = wilson_interval(successes, trials)
    assert got.low == pytest.approx(low, abs=5e-5)
    assert got.high == pytest.approx(high, abs=5e-5)


@given(st.integers(0, 400), st.integers(1, 400))
def test_wilson_properties(successes: int, trials: int):
    successes = min(successes, trials)
    got = wilson_interval(successes, trials)
    assert 0 <= got.low <= successes / trials <= got.high <= 1
    assert got.low < got.high
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored.low == pytest.approx(1 - got.high)
    wide = wilson_interval(successes, trials, confidence=0.99)
    assert wide.low <= got.low
    assert got.high <= wide.high
    # the defining equation: each end p lies z standard errors from the observed rate
    for p in got:
        assert (successes / trials - p) ** 2 == pytest.approx(Z2 * p * (1 - p) / trials, abs=1e-9)


def test_wilson_edges():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for successes, trials in [(-1, 3), (4, 3), (0, -1)]:
        with pytest.raises(ValueError, match="successes <= trials"):
            wilson_interval(successes, trials)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence=95.0)


def test_paired_known():
    # d = 1, 1, 0, 0: mean 1/2, s^2 = 4 * 1/4 / 3 = 1/3, standard error sqrt(1/12) = 0.288675
    got = paired_difference([False, False, True, False], [True, True, True, False])
    assert got.mean == 0.5
    assert got.pairs == 4
    assert got.standard_error == pytest.approx(0.288675, abs=1e-6)
    assert got.low == pytest.approx(0.5 - 1.959964 * 0.288675, abs=1e-5)
    assert got.high == 1.0  # 1.066 is cut


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_paired_properties(pairs: list[tuple[bool, bool]]):
    before, after = zip(*pairs, strict=True)
    got, back = paired_difference(before, after), paired_difference(after, before)
    assert got.mean == -back.mean
    assert got.low == pytest.approx(-back.high)
    assert got.mean == pytest.approx(sum(after) / len(after) - sum(before) / len(before))
    assert -1 <= got.low <= got.mean <= got.high <= 1


def test_pairing_beats_two_separate_rates():
    """20 states always solved, 20 never, 10 newly: unpaired errors would be 0.069 each, 0.098 together."""
    before = [1] * 20 + [0] * 30
    after = [1] * 30 + [0] * 20
    got = paired_difference(before, after)
    assert got.mean == pytest.approx(0.2)
    assert got.standard_error == pytest.approx(math.sqrt(0.2 * 0.8 / 49), abs=1e-9)


def test_no_pair_that_differs_is_not_certainty():
    got = paired_difference([1, 0, 1, 0, 1], [1, 0, 1, 0, 1])
    # as if one more had improved and one had got worse: sqrt(2) / 7
    assert got == (
        0.0,
        pytest.approx(0.2020305, abs=1e-6),
        pytest.approx(-0.395973, abs=1e-5),
        pytest.approx(0.395973, abs=1e-5),
        5,
    )


def test_paired_edges():
    assert paired_difference([0], [1]) == (1.0, 1.0, pytest.approx(-0.959964), 1.0, 1)
    with pytest.raises(ValueError, match="3 before and 2 after"):
        paired_difference([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="at least one"):
        paired_difference([], [])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        paired_difference([0, 3], [1, 1])


def test_students_interval_of_a_few_seeds() -> None:
    # by hand: mean 0.862, s = 0.02762, t = 4.3027, half = 4.3027 s / sqrt(3)
    interval = mean_interval([0.84, 0.853, 0.893])
    assert interval is not None
    assert interval == pytest.approx((0.7934, 0.9306), abs=1e-4)
    assert mean_interval([0.5]) is None
    assert mean_interval([]) is None
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="finite"):
        mean_interval([0.5, math.nan])


@pytest.mark.parametrize(
    ("confidence", "freedom", "expected"),
    [
        (0.95, 1, 12.7062), (0.95, 2, 4.3027), (0.95, 3, 3.1824), (0.95, 4, 2.7764), (0.95, 29, 2.0452),
        (0.99, 5, 4.0321), (0.5, 1, 1.0),
    ],
)  # fmt: skip
def test_students_quantile_is_that_of_the_tables(
    confidence: float, freedom: int, expected: float
) -> None:
    assert student_quantile(confidence, freedom) == pytest.approx(expected, abs=1e-4)


def test_students_quantile_becomes_the_normal_one() -> None:
    assert student_quantile(0.95, 100_000) == pytest.approx(1.95996, abs=1e-4)
    with pytest.raises(ValueError, match="degree of freedom"):
        student_quantile(0.95, 0)
    with pytest.raises(ValueError, match="confidence"):
        student_quantile(1.0, 3)
