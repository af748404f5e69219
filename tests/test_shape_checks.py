"""The annotations are checked while tests run: in the packages that are named, arrays alone or every type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import shape_checks
from vla_rl.functional import masked_mean
from vla_rl.rewards.reward import bound_dense_rewards

TURNS = np.zeros((3, 2), np.float32), np.zeros((3, 2), bool)


def test_an_array_of_another_shape_or_kind_is_found():
    for total in (np.zeros(3, np.float32), np.zeros(2, int), [0.0, 0.0]):
        with pytest.raises(TypeCheckError, match="bound_dense_rewards"):
            bound_dense_rewards(*TURNS, total)


def test_types_that_are_no_arrays_are_checked_in_the_mathematics_alone():
    bound_dense_rewards(*TURNS, np.zeros(2, np.float32), limit=np.float64(0.5))
    with pytest.raises(TypeCheckError, match="masked_mean"):
        masked_mean(torch.zeros(3), mask=[True, False, True])


def test_the_first_calls_of_a_test_are_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        shape_checks.Budget, "left", 4
    )  # two for each call: what goes in, what comes out
    good, bad = np.zeros(2, np.float32), np.zeros(3, np.float32)
    for _ in range(2):
        bound_dense_rewards(*TURNS, good)
    with pytest.raises(TypeCheckError):
        bound_dense_rewards(*TURNS, bad)
    with pytest.raises(ValueError, match="broadcast"):
        bound_dense_rewards(*TURNS, bad)


@pytest.mark.usefixtures("shapes_unchecked")
def test_a_test_can_do_without():
    with pytest.raises(ValueError, match="broadcast"):
        bound_dense_rewards(*TURNS, np.zeros(3, np.float32))
