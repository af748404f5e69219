"""The annotations are checked while tests run: in the packages that are named, arrays alone or every type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import shape_checks
from vla_rl.functional import masked_mean
from vla_rl.rewards.shaping import potential_shaping

SHAPES = "dimension|broadcast"


def shaping(following: object, gamma: float = 0.9) -> np.ndarray:
    """Two environments, three turns."""
    return potential_shaping(
        np.zeros((3, 2), np.float32),
        following,
        np.zeros((3, 2), bool),
        gamma,  # pyright: ignore[reportArgumentType]
    )


def test_an_array_of_another_shape_or_kind_is_found():
    for total in (np.zeros(3, np.float32), np.zeros(2, int), [0.0, 0.0]):
        with pytest.raises(TypeCheckError, match="potential_shaping"):
            shaping(total)


def test_types_that_are_no_arrays_are_checked_in_the_mathematics_alone():
    shaping(np.zeros(2, np.float32), np.float64(0.5))
    with pytest.raises(TypeCheckError, match="masked_mean"):
        masked_mean(torch.zeros(3), mask=[True, False, True])


def test_the_first_calls_of_a_test_are_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        shape_checks.Budget, "left", 4
    )  # two for each call: what goes in, what comes out
    good, bad = np.zeros(2, np.float32), np.zeros(3, np.float32)
    for _ in range(2):
        shaping(good)
    with pytest.raises(TypeCheckError):
        shaping(bad)
    with pytest.raises(ValueError, match=SHAPES):
        shaping(bad)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_test_can_do_without():
    with pytest.raises(ValueError, match=SHAPES):
        shaping(np.zeros(3, np.float32))
