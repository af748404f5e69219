"""Ranking and calibration: literal known answers, and relations that hold for any scores."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_rl.functional import (
    area_under_roc,
    average_precision,
    average_ranks,
    calibration_error,
    pairwise_ranking,
    rank_correlation,
    reliability,
)


def array(*values):
    return np.array(values, dtype=np.float64)


def flags(text):
    return np.array([letter == "+" for letter in text], dtype=bool)


ROUNDING = 1e-12  # of sums of a few dozen shares
scored = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        # few distinct values, so that ties are common
        hnp.arrays(np.float64, n, elements=st.integers(-4, 4).map(lambda i: i / 8)),
        hnp.arrays(np.bool_, n),
    )
)


def both_classes(labels):
    assume(labels.any() and not labels.all())


# -- literal answers -------------------------------------------------------------------------------


def test_ranks_of_equal_values_are_their_mean():
    assert average_ranks(array(3, 1, 3, 2, 3)).tolist() == [4, 1, 4, 2, 4]


def test_area_under_roc_of_a_textbook_example():
    # of the 4 pairs only (0.35, 0.4) is in the wrong order
    assert area_under_roc(array(0.1, 0.4, 0.35, 0.8), flags("--++")) == 0.75
    assert area_under_roc(array(1, 2, 3), flags("-++")) == 1.0
    assert area_under_roc(array(3, 2, 1), flags("-++")) == 0.0
    # one tie of two pairs: half of it
    assert area_under_roc(array(1, 1, 2), flags("-++")) == 0.75


def test_average_precision_of_a_textbook_example():
    # thresholds 0.8 (1/1), 0.4 (1/2), 0.35 (2/3): 1/2 * 1 + 1/2 * 2/3
    value = average_precision(array(0.1, 0.4, 0.35, 0.8), flags("--++"))
    assert value == pytest.approx(5 / 6)
    # all alike: one threshold, at which precision is the share of positives
    assert average_precision(array(2, 2, 2, 2), flags("+---")) == 0.25


def test_reliability_bins_by_hand():
    found = reliability(array(0.1, 0.2, 0.6, 1.0), flags("-+++"), bins=2)
    assert found.edges.tolist() == [0, 0.5, 1]
    assert found.counts.tolist() == [2, 2]
    assert found.predicted.tolist() == pytest.approx([0.15, 0.8])
    assert found.observed.tolist() == [0.5, 1.0]
    # (2 * 0.35 + 2 * 0.2) / 4
    assert calibration_error(array(0.1, 0.2, 0.6, 1.0), flags("-+++"), 2) == pytest.approx(0.275)


def test_a_bin_holds_its_lower_edge_and_the_last_one_both():
    found = reliability(array(0.0, 0.5, 1.0), flags("---"), bins=2)
    assert found.counts.tolist() == [1, 2]
    empty = reliability(array(0.9), flags("+"), bins=2)
    assert math.isnan(empty.observed[0])
    assert calibration_error(array(0.9), flags("+"), 2) == pytest.approx(0.1)


def test_pairs_by_hand():
    ranking = pairwise_ranking(array(2, 3), array(1, 2, 4))
    # 2 > 1, 2 = 2, 2 < 4, 3 > 1, 3 > 2, 3 < 4
    assert ranking == (3.5, 6)
    assert ranking.accuracy == pytest.approx(3.5 / 6)
    assert math.isnan(pairwise_ranking(array(), array(1.0)).accuracy)


def test_spearman_by_hand():
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with d = 0, 1, -1: 1 - 12 / 24
    assert rank_correlation(array(1, 2, 3), array(10, 30, 20)) == pytest.approx(0.5)
    assert math.isnan(rank_correlation(array(1, 1, 1), array(1, 2, 3)))
    assert math.isnan(rank_correlation(array(1), array(1)))


# -- relations -------------------------------------------------------------------------------------


@given(scored)
def test_the_area_is_the_share_of_pairs_in_order(example):
    scores, labels = example
    both_classes(labels)
    pairs = pairwise_ranking(scores[labels], scores[~labels])
    counted = sum(
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[labels].tolist()
        for n in scores[~labels].tolist()
    )
    assert pairs.right == counted
    assert area_under_roc(scores, labels) == pytest.approx(pairs.accuracy)


@given(scored)
def test_only_the_order_of_the_scores_counts(example):
    scores, labels = example
    both_classes(labels)
    stretched = np.exp(3 * scores)
    assert area_under_roc(stretched, labels) == pytest.approx(area_under_roc(scores, labels))
    assert average_precision(stretched, labels) == pytest.approx(average_precision(scores, labels))
    assert rank_correlation(stretched, labels + 0.0) == pytest.approx(
        rank_correlation(scores, labels + 0.0), nan_ok=True
    )


@given(scored)
def test_turning_scores_or_labels_round_turns_the_area_round(example):
    scores, labels = example
    both_classes(labels)
    area = area_under_roc(scores, labels)
    assert area_under_roc(-scores, labels) == pytest.approx(1 - area)
    assert area_under_roc(scores, ~labels) == pytest.approx(1 - area)


@given(scored, st.randoms())
def test_the_order_of_the_examples_does_not_count(example, random):
    scores, labels = example
    both_classes(labels)
    order = list(range(len(scores)))
    random.shuffle(order)
    assert area_under_roc(scores[order], labels[order]) == pytest.approx(
        area_under_roc(scores, labels)
    )
    assert average_precision(scores[order], labels[order]) == pytest.approx(
        average_precision(scores, labels)
    )


@given(scored)
def test_average_precision_lies_between_chance_of_the_worst_order_and_one(example):
    scores, labels = example
    both_classes(labels)
    value = average_precision(scores, labels)
    assert 0 < value <= 1 + ROUNDING
    assert average_precision(labels + 0.0, labels) == pytest.approx(1)
    assert average_precision(np.zeros(len(labels)), labels) == pytest.approx(labels.mean())


@given(scored, st.integers(1, 12))
def test_the_calibration_error_is_bounded_and_zero_where_probabilities_are_the_shares(
    example, bins
):
    scores, labels = example
    probabilities = scores + 0.5
    assert 0 <= calibration_error(probabilities, labels, bins) <= 1 + ROUNDING
    share = np.full(len(labels), labels.mean())
    assert calibration_error(share, labels, bins) == pytest.approx(0, abs=ROUNDING)
    assert calibration_error(labels + 0.0, labels, bins) == pytest.approx(0, abs=ROUNDING)
    assert reliability(probabilities, labels, bins).counts.sum() == len(labels)


@given(hnp.arrays(np.float64, st.integers(2, 20), elements=st.integers(-5, 5).map(float)))
def test_rank_correlation_with_itself_and_with_its_reverse(values):
    assume(len(set(values.tolist())) > 1)
    assert rank_correlation(values, values) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [area_under_roc, average_precision])
def test_one_class_only_and_scores_that_are_not_finite_are_refused(measure):
    with pytest.raises(ValueError, match="2 positives and 0 negatives"):
        measure(array(1, 2), flags("++"))
    with pytest.raises(ValueError, match="1 scores are not finite"):
        measure(array(1, np.nan), flags("+-"))


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        reliability(array(1.5), flags("+"))
    with pytest.raises(ValueError, match="a bin"):
        reliability(array(), flags(""))
