"""Plateaus of made-up curves."""

from __future__ import annotations

import numpy as np
import pytest

from vla_rl.functional.plateaus import change_over, plateaus

RNG = np.random.default_rng


def curve(noise: float, seed: int = 0) -> np.ndarray:
    """Up for 30 points, still for 40, up for 30."""
    steps = np.concatenate([np.full(30, 0.01), np.zeros(40), np.full(30, 0.01)])
    return np.cumsum(steps) + noise * RNG(seed).normal(size=100)


def test_the_still_part_is_found():
    (found,) = plateaus(curve(0.01), window=15, tolerance=0.05)
    assert 24 <= found.start <= 34
    assert 65 <= found.end <= 75
    assert found.mean == pytest.approx(0.3, abs=0.02)
    assert -0.05 <= found.low <= found.change <= found.high <= 0.05


def test_noise_shows_no_plateau_where_none_can_be_shown():
    assert plateaus(curve(0.2), window=15, tolerance=0.05) == []


def test_a_slow_rise_is_none_though_each_window_of_it_hardly_moves():
    rise = np.linspace(0, 0.4, 200) + 0.003 * RNG(1).normal(size=200)
    found = plateaus(rise, window=15, tolerance=0.05)
    # no stretch goes beyond what the tolerance allows
    assert all(p.end - p.start < 40 for p in found)
    assert all(abs(rise[p.end] - rise[p.start]) < 0.07 for p in found)
    assert plateaus(rise, window=40, tolerance=0.05) == []


def test_all_still():
    (found,) = plateaus(0.5 + 0.01 * RNG(2).normal(size=60), window=15, tolerance=0.05)
    assert (found.start, found.end) == (0, 59)


def test_short_curves_have_none():
    assert plateaus(np.zeros(14), window=15, tolerance=0.05) == []
    assert plateaus(np.zeros(0), window=15, tolerance=0.05) == []


def test_the_interval_of_the_change_covers_it_though_points_hang_together():
    rng = RNG(3)
    covered = 0
    for _ in range(200):
        noise = rng.normal(size=60)
        for i in range(1, 60):
            noise[i] += 0.4 * noise[i - 1]
        change, low, high = change_over(np.linspace(0, 2, 60) + noise)
        assert low <= change <= high
        covered += low <= 2.0 <= high
    assert covered >= 178  # 190 asked for; least squares alone has some 155


@pytest.mark.parametrize("values", [np.zeros(2), np.array([0.0, np.nan, 1.0])])
def test_what_has_no_slope(values):
    with pytest.raises(ValueError, match="finite points"):
        change_over(values)


@pytest.mark.parametrize(("window", "tolerance"), [(2, 0.1), (5, 0.0)])
def test_what_is_no_plateau(window, tolerance):
    with pytest.raises(ValueError, match="window"):
        plateaus(np.zeros(9), window, tolerance)
