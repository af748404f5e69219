"""Entropy from nearest neighbours against distributions whose entropy is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vla_rl.functional.spread import (
    cell_widths,
    effective_volume,
    entropy_terms,
    mean_over_groups,
    percentiles,
    spread_over_cells,
)

RNG = np.random.default_rng
GAUSSIAN = 0.5 * math.log(2 * math.pi * math.e)  # of one dimension, standard deviation 1


@pytest.mark.parametrize(
    ("draw", "entropy"),
    [
        (lambda r: r.normal(size=(4000, 1)), GAUSSIAN),
        (lambda r: r.normal(size=(4000, 3)) * 0.1, 3 * (GAUSSIAN + math.log(0.1))),
        (lambda r: r.uniform(-1, 1, size=(4000, 2)), 2 * math.log(2)),
        (lambda r: r.uniform(0, 0.25, size=(4000, 2)), 2 * math.log(0.25)),
        # correlation 0.9: log sqrt(1 - 0.81) less than two independent ones
        (
            lambda r: r.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], size=4000),
            2 * GAUSSIAN + 0.5 * math.log(1 - 0.81),
        ),
    ],
    ids=["gaussian", "narrow gaussian", "uniform", "narrow uniform", "correlated"],
)
def test_known_entropies(draw, entropy):
    assert entropy_terms(draw(RNG(0))).mean() == pytest.approx(entropy, abs=0.08)


def test_within_bounds_few_samples_in_many_dimensions_are_enough():
    samples = RNG(5).uniform(-1, 1, size=(300, 4))
    bounds = np.array([[-1.0] * 4, [1.0] * 4])
    assert entropy_terms(samples, bounds=bounds).mean() == pytest.approx(4 * math.log(2), abs=0.15)
    assert entropy_terms(samples).mean() > 4 * math.log(2) + 0.4  # what the bounds are for
    with pytest.raises(ValueError, match="bounds"):
        entropy_terms(samples, bounds=bounds / 2)


def test_entropy_of_rounded_values_is_that_of_their_cells():
    # eight of 256 bins, equally often: log 8 + log of the cell's width
    width = 2 / 255
    rounded = RNG(1).integers(0, 8, size=(3000, 1)) * width
    found = cell_widths(rounded, otherwise=9.0)
    assert found == pytest.approx([width])
    smooth = spread_over_cells(rounded, found, RNG(2))
    assert entropy_terms(smooth).mean() == pytest.approx(math.log(8 * width), abs=0.05)


def test_width_of_a_dimension_that_never_moves_is_given():
    assert cell_widths(np.full((5, 1), 0.25), otherwise=0.5) == pytest.approx([0.5])


def test_effective_volume():
    box = np.array([[-1.0, -1.0], [1.0, 1.0]])
    assert effective_volume(2 * math.log(2), box) == pytest.approx(1.0)  # uniform on it
    assert effective_volume(2 * math.log(1), box) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("samples", "match"),
    [
        (np.zeros((3, 2)), "more than k"),
        (np.full((9, 1), np.nan), "finite"),
        (np.zeros((9, 1)), "coincide"),
    ],
)
def test_what_has_no_entropy(samples, match):
    with pytest.raises(ValueError, match=match):
        entropy_terms(samples, k=4)


def test_intervals_are_of_groups_and_cover():
    # terms of a group are one and the same number, so that only groups tell anything
    rng = RNG(3)
    covered = 0
    for _ in range(200):
        values = rng.normal(size=25)
        groups = np.repeat(np.arange(25), 40)
        resamples = rng.integers(0, 25, size=(200, 25))
        mean, interval, means = mean_over_groups(values[groups], groups, resamples)
        assert mean == pytest.approx(values.mean())
        assert interval == percentiles(means)
        covered += interval.low <= 0.0 <= interval.high
    assert 170 <= covered <= 200  # 95 % of 200 are 190; taken for independent it would be some 60


def test_difference_is_paired():
    # both quantities rise and fall with the episode: their difference does not
    rng = RNG(4)
    hard = rng.normal(size=40) * 5
    groups = np.repeat(np.arange(40), 3)
    resamples = rng.integers(0, 40, size=(400, 40))
    *_, one = mean_over_groups(hard[groups], groups, resamples)
    *_, two = mean_over_groups(hard[groups] + 1.0, groups, resamples)
    assert percentiles(two - one) == pytest.approx((1.0, 1.0))
