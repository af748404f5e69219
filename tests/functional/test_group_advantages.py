"""Advantages within groups: numbers by hand, and the gradient that they estimate, summed over all that can happen."""

import itertools

import pytest
import torch
from torch import Tensor

from vla_rl.functional import GroupAdvantage, group_advantages


def test_numbers_by_hand_and_groups_do_not_touch() -> None:
    returns = torch.tensor([1.0, 5.0, 0.0, 7.0, 0.0, 1.0])
    groups = torch.tensor([7, 2, 7, 2, 7, 7])
    expected = {
        "centered": [0.5, -1.0, -0.5, 1.0, -0.5, 0.5],
        "leave-one-out": [2 / 3, -2.0, -2 / 3, 2.0, -2 / 3, 2 / 3],
        "normalized": [0.75**0.5, -(0.5**0.5), -(0.75**0.5), 0.5**0.5, -(0.75**0.5), 0.75**0.5],
    }
    for kind, numbers in expected.items():
        found = group_advantages(returns, groups, kind, eps=0.0)  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.tensor(numbers))


@pytest.mark.parametrize("kind", ["normalized", "centered", "leave-one-out"])
def test_a_group_of_equals_says_nothing(kind: GroupAdvantage) -> None:
    found = group_advantages(torch.full((4,), 3.0), torch.tensor([0, 0, 1, 1]), kind)
    assert torch.equal(found, torch.zeros(4))
    assert len(group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.int64), kind)) == 0


def test_one_alone_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="at least two"):
        group_advantages(torch.zeros(3), torch.tensor([0, 0, 1]), "centered")


REWARDS = torch.tensor([[0.3, 0.0], [1.0, -0.7]], dtype=torch.float64)
"""Of the first action and the second in a task of two steps; the second state is the first action."""


def log_probs(logits: Tensor) -> Tensor:
    """Of the four trajectories."""
    first = torch.log_softmax(logits[0], 0)
    second = torch.log_softmax(logits[1:], 1)
    return (first[:, None] + second).flatten()


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize(
    ("kind", "share"), [("leave-one-out", 1.0), ("centered", None), ("normalized", None)]
)
def test_what_the_estimators_are_on_average(
    kind: GroupAdvantage, share: float | None, group: int
) -> None:
    """Over all groups that can be drawn, each with its probability: no sampling, so no tolerance but rounding."""
    logits = torch.tensor([[0.2, -0.4], [0.9, 0.1], [-0.3, 0.5]], dtype=torch.float64)
    logits.requires_grad_()
    returns = REWARDS.flatten()
    (exact,) = torch.autograd.grad((log_probs(logits).exp() * returns).sum(), logits)
    of_each = torch.autograd.functional.jacobian(log_probs, logits)
    probabilities = log_probs(logits).detach().exp()
    mean = torch.zeros_like(exact)
    for drawn in itertools.product(range(4), repeat=group):
        advantages = group_advantages(
            returns[list(drawn)], torch.zeros(group, dtype=torch.int64), kind
        )
        estimate = torch.einsum("g,gij->ij", advantages, of_each[list(drawn)]) / group
        mean += probabilities[list(drawn)].prod() * estimate
    if kind == "normalized":  # another gradient than that of the mean return
        assert not torch.allclose(mean / mean.norm(), exact / exact.norm(), atol=1e-3)
        return
    torch.testing.assert_close(mean, exact * ((group - 1) / group if share is None else share))
