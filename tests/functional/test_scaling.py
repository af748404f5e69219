"""The line of success in log N."""

from __future__ import annotations

import numpy as np
import pytest

from vla_rl.functional.scaling import fit_log

SIZES = (1, 2, 4, 8)


def nested(rates: list[float], episodes: int) -> np.ndarray:
    """Outcomes with exactly these rates; an episode solved with few candidates is solved with more."""
    difficulty = (np.arange(episodes) + 0.5) / episodes
    return np.array([difficulty < rate for rate in rates])


def test_a_straight_line_is_found_exactly() -> None:
    fit = fit_log(SIZES, nested([0.2, 0.4, 0.6, 0.8], 100))
    assert fit.intercept == pytest.approx(0.2)
    assert fit.slope == pytest.approx(0.2)  # per doubling
    assert fit.at(16) == pytest.approx(1.0)
    assert 0 < fit.slope_low < 0.2 < fit.slope_high


def test_points_count_by_their_binomial_variance() -> None:
    outcomes = nested([0.02, 0.5, 0.55, 0.98], 200)
    counts = outcomes.sum(1)
    smoothed = (counts + 1) / 202
    weights = np.sqrt(200 / (smoothed * (1 - smoothed)))
    slope, intercept = np.polyfit(np.log2(SIZES), counts / 200, 1, w=weights)
    fit = fit_log(SIZES, outcomes)
    assert (fit.slope, fit.intercept) == pytest.approx((slope, intercept))
    assert fit.slope != pytest.approx(np.polyfit(np.log2(SIZES), counts / 200, 1)[0], abs=1e-3)


def test_order_of_sizes_and_of_episodes_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    outcomes = rng.random((4, 60)) < np.array([[0.3], [0.4], [0.5], [0.6]])
    fit = fit_log(SIZES, outcomes)
    back = fit_log(SIZES[::-1], outcomes[::-1][:, ::-1])
    assert back.slope == pytest.approx(fit.slope)
    assert back.intercept == pytest.approx(fit.intercept)


@pytest.mark.parametrize("correlated", [True, False])
def test_the_error_is_the_spread_over_repeated_experiments(correlated: bool) -> None:
    """Also where the same episodes succeed at every N, which a fit of independent points would get wrong."""
    rng = np.random.default_rng(1)
    rates = np.array([[0.3], [0.4], [0.5], [0.6]])
    fits = [
        fit_log(
            SIZES,
            rng.random((1, 80) if correlated else (4, 80)) < rates,
            resamplings=200,
            seed=i,
        )
        for i in range(300)
    ]
    spread = np.std([fit.slope for fit in fits])
    claimed = np.mean([fit.slope_error for fit in fits])
    assert claimed == pytest.approx(spread, rel=0.15)
    covered = np.mean([fit.slope_low <= 0.1 <= fit.slope_high for fit in fits])
    assert 0.9 < covered < 0.99
    assert np.mean([fit.intercept_error for fit in fits]) == pytest.approx(
        np.std([fit.intercept for fit in fits]), rel=0.15
    )


def test_all_or_nothing_has_a_finite_fit() -> None:
    fit = fit_log((1, 2), np.array([[False] * 10, [True] * 10]))
    assert (fit.intercept, fit.slope) == pytest.approx((0.0, 1.0), abs=1e-12)
    assert np.isfinite(fit).all()


def test_what_is_no_line_is_refused() -> None:
    with pytest.raises(ValueError, match="two different"):
        fit_log((4, 4), np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="two different"):
        fit_log((0, 4), np.ones((2, 3), bool))
    for shape in ((2, 0), (3, 5)):
        with pytest.raises(ValueError, match="expected outcomes of 2 sizes"):
            fit_log((1, 2), np.ones(shape, bool))
