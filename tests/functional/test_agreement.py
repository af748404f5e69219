"""Cohen's kappa against published examples."""

from __future__ import annotations

import math

import pytest

from vla_rl.functional.agreement import cohens_kappa


def judged(table: list[list[int]]) -> tuple[list[str], list[str]]:
    """Two lists of labels that have this table of counts."""
    pairs = [
        (str(row), str(column))
        for row, counts in enumerate(table)
        for column, count in enumerate(counts)
        for _ in range(count)
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_fleiss_cohen_everitt_1969():
    # their table 1, in hundredths of 200 cases: kappa 0.429, standard error 0.0538
    table = [[106, 10, 4], [22, 28, 10], [2, 12, 6]]
    found = cohens_kappa(*judged(table))
    assert found.kappa == pytest.approx(0.4286, abs=1e-3)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(0.0538, abs=1e-3)
    assert found.things == 200
    assert found.agreed == pytest.approx(0.70)
    assert found.by_chance == pytest.approx(0.475)


def test_two_by_two():
    # 20 and 15 of 50 alike: p_o 0.7, p_e 0.5
    assert cohens_kappa(*judged([[20, 5], [10, 15]])).kappa == pytest.approx(0.4)


def test_ends():
    assert cohens_kappa(list("aabb"), list("aabb")).kappa == pytest.approx(1.0)
    assert cohens_kappa(list("aabb"), list("bbaa")).kappa == pytest.approx(-1.0)
    assert math.isnan(cohens_kappa(list("aa"), list("aa")).kappa)
    assert cohens_kappa(list("aa"), list("bb")).kappa == pytest.approx(0.0)


@pytest.mark.parametrize(("one", "two"), [([], []), (["a"], [])])
def test_labels_must_be_of_the_same_things(one, two):
    with pytest.raises(ValueError, match="two labels"):
        cohens_kappa(one, two)
