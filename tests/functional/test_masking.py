import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import tensor

from vla_rl.functional import masked_mean, masked_var, masked_whiten

X = tensor([[1.0, 3.0], [torch.nan, 100.0]])
FIRST_ROW = tensor([[True, True], [False, False]])


def test_known():
    assert masked_mean(X, FIRST_ROW).item() == 2.0
    assert masked_var(X, FIRST_ROW).item() == 1.0
    assert masked_whiten(X, FIRST_ROW).tolist() == [[-1.0, 1.0], [0.0, 0.0]]


@given(st.integers(0, 2**32), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_whitened_entries_have_mean_0_and_deviation_1(seed: int, scale: float, shift: float):
    """Whatever the scale, down to a spread of 1e-5 of the mean, where float32 still holds three digits."""
    generator = torch.Generator().manual_seed(seed)
    x = scale * (torch.randn(6, 5, generator=generator) + shift)
    mask = torch.rand(6, 5, generator=generator) < 0.7
    mask[0, :2] = True
    x[0, 0], x[0, 1] = scale * (shift + 2), scale * (shift - 2)
    white = masked_whiten(x, mask)
    chosen = white[mask].double()
    assert abs(chosen.mean().item()) < 1e-3
    assert abs(chosen.std(correction=0).item() - 1) < 1e-3
    assert torch.equal(white[~mask], torch.zeros_like(white[~mask]))
    assert torch.equal(masked_whiten(torch.where(mask, x, torch.nan), mask), white)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
@pytest.mark.parametrize("count", [0, 1, 1601])
def test_nothing_to_tell_apart_gives_zeros(value: float, count: int):
    """One entry, or constants whose mean is off by rounding, are not blown up to deviation 1."""
    x = torch.full((1601,), value)
    mask = torch.arange(1601) < count
    assert torch.equal(masked_whiten(x, mask), torch.zeros(1601))
    assert masked_var(x, mask).item() <= (1e-6 * value) ** 2


def test_empty_mask_is_0_with_zero_gradient():
    x = tensor([1.0, 2.0], requires_grad=True)
    none = tensor([False, False])
    loss = masked_mean(x, none) + masked_var(x, none) + masked_whiten(x, none).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0]


def test_without_a_mask_all_count_and_bfloat16_sums_in_float32():
    # in bfloat16 a running sum of ones stops at 256
    ones = torch.ones(4096, dtype=torch.bfloat16)
    assert masked_mean(ones).dtype == torch.float32
    assert masked_mean(ones).item() == 1.0
    x = torch.arange(5.0)
    assert masked_mean(x).item() == 2.0
    assert masked_var(x).item() == 2.0
    torch.testing.assert_close(masked_whiten(x), (x - 2) / 2**0.5)
