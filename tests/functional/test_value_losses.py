import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import tensor

from vla_rl.functional import (
    ErrorKind,
    clipped_value_loss,
    explained_variance,
    huber_value_loss,
    squared_value_loss,
)


def test_losses_known():
    values, returns = tensor([0.0, 0.0]), tensor([0.5, -3.0])
    assert squared_value_loss(values, returns).item() == 2.3125  # (.25 + 9) / 2 / 2
    assert huber_value_loss(values, returns).item() == 1.3125  # (.125 + (3 - .5)) / 2
    # delta 2: 2 * (3 - 1) = 4 for the large one
    assert huber_value_loss(values, returns, delta=2.0).item() == 2.0625


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_huber_is_squared_for_small_errors(value: float, target: float):
    pair = tensor([value / 2]), tensor([target / 2])
    torch.testing.assert_close(huber_value_loss(*pair), squared_value_loss(*pair))


def test_huber_gradient_is_bounded():
    values = tensor([-100.0, 0.25, 100.0], requires_grad=True)
    huber_value_loss(values, torch.zeros(3)).backward()
    torch.testing.assert_close(values.grad, tensor([-1.0, 0.25, 1.0]) / 3)


@pytest.mark.parametrize("kind", ["mse", "huber"])
@pytest.mark.parametrize(
    ("value", "moves"),
    [
        (0.3, False),  # has moved by more than .2 towards the return 1: no more gradient
        (0.1, True),  # inside the range
        (-0.3, True),  # has moved away from the return: still pulled back
    ],
)
def test_clipped_loss_gradient(kind: ErrorKind, value: float, moves: bool):
    values = tensor([value], requires_grad=True)
    clipped_value_loss(values, tensor([1.0]), tensor([0.0]), 0.2, kind=kind).backward()
    assert values.grad is not None
    pull = max(value - 1, -1.0) if kind == "huber" else value - 1
    assert values.grad.item() == pytest.approx(pull if moves else 0.0)


def test_clipped_loss_known():
    # V .5, G 1, V_old 0, range .2: errors .125 and (1 - .2)^2 / 2 = .32; the larger one counts
    loss = clipped_value_loss(tensor([0.5]), tensor([1.0]), tensor([0.0]), 0.2)
    assert loss.item() == pytest.approx(0.32)


@given(st.integers(0, 2**32))
def test_clipped_loss_is_never_below_and_with_a_wide_range_equals_the_plain_one(seed: int):
    values, returns, old = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
    plain = squared_value_loss(values, returns)
    assert clipped_value_loss(values, returns, old, 0.1) >= plain
    torch.testing.assert_close(clipped_value_loss(values, returns, old, 100.0), plain)


def test_no_gradient_into_targets_and_masked_entries_do_not_count():
    values = tensor([1.0, 2.0], requires_grad=True)
    targets = tensor([0.0, torch.nan], requires_grad=True)
    mask = tensor([True, False])
    for loss in (
        squared_value_loss(values, targets, mask),
        huber_value_loss(values, targets, mask=mask),
        clipped_value_loss(values, targets, values, 0.2, mask),
    ):
        assert loss.item() == 0.5
        assert torch.autograd.grad(loss, targets, allow_unused=True)[0] is None


@pytest.mark.parametrize("bad", [{"clip_range": 0.0}, {"clip_range": 0.2, "kind": "mae"}])
def test_clipped_loss_refuses_nonsense(bad: dict):
    with pytest.raises(Exception, match=r"clip_range|mae"):
        clipped_value_loss(tensor([1.0]), tensor([1.0]), tensor([1.0]), **bad)


def test_bfloat16_is_computed_in_float32():
    # 1 + 1/256 is no bfloat16: the difference survives only if returns stay wide
    values, returns = torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 1 + 1 / 256)
    assert squared_value_loss(values, returns).item() == 2.0**-17


def test_explained_variance_known():
    returns = tensor([0.0, 1.0, 2.0, 3.0])
    assert explained_variance(values=returns, returns=returns).item() == 1.0
    assert explained_variance(values=torch.zeros(4), returns=returns).item() == 0.0
    assert explained_variance(values=-returns, returns=returns).item() == -3.0  # 1 - Var[2G]/Var[G]
    assert explained_variance(values=returns / 2, returns=returns).item() == 0.75
    mask = tensor([True, True, False, False])
    wrong_outside = tensor([0.0, 1.0, 9.0, torch.nan])
    assert explained_variance(values=wrong_outside, returns=returns, mask=mask).item() == 1.0


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_explained_variance_of_constant_returns_is_0(constant: float):
    """A window without a single success must not pass for a critic that has learnt."""
    returns = torch.full((1601,), constant)
    assert explained_variance(values=returns, returns=returns).item() == 0.0
    assert explained_variance(values=torch.randn(1601), returns=returns).item() == 0.0
    assert explained_variance(values=torch.ones(1), returns=torch.ones(1)).item() == 0.0
