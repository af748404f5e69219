import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import tensor

from vla_rl.functional import (
    action_log_softmax,
    entropy,
    gather_log_probs,
    sample_from_uniforms,
)

INF = math.inf


def test_temperature_known():
    # logits log 1, log 4 at temperature 2: weights 1, 2
    got = action_log_softmax(tensor([1.0, 4.0]).log(), temperature=2.0).exp()
    torch.testing.assert_close(got, tensor([1.0, 2.0]) / 3)


@given(st.integers(0, 2**32), st.floats(0.1, 5.0), st.floats(-50, 50))
def test_log_softmax_is_normalised_and_blind_to_a_shift(
    seed: int, temperature: float, shift: float
):
    logits = 3 * torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed))
    got = action_log_softmax(logits, temperature)
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(
        action_log_softmax(logits + shift, temperature), got, rtol=1e-3, atol=2e-3
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float):
    with pytest.raises(ValueError, match=r"positive.*argmax"):
        action_log_softmax(torch.zeros(3), temperature)


def test_bfloat16_logits_are_normalised_in_float32():
    logits = torch.randn(4, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = action_log_softmax(logits)
    assert got.dtype == torch.float32
    assert torch.equal(got, action_log_softmax(logits.float()))
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(4))


def test_gather_equals_a_loop_over_the_chunk():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 8, 32, generator=generator)
    tokens = torch.randint(32, (3, 8), generator=generator)
    log_probs = action_log_softmax(logits, 1.3)
    expected = [
        [torch.log_softmax(logits[n, k] / 1.3, 0)[tokens[n, k]].item() for k in range(8)]
        for n in range(3)
    ]
    torch.testing.assert_close(gather_log_probs(log_probs, tokens), tensor(expected))


def test_entropy_known():
    rows = tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]])
    expected = tensor([math.log(4), 1.5 * math.log(2), 0.0])
    torch.testing.assert_close(entropy(rows.log()), expected)


def test_entropy_of_impossible_bins_has_a_finite_gradient():
    logits = tensor([0.0, 1.0, -INF], requires_grad=True)
    entropy(action_log_softmax(logits)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0] > 0 > logits.grad[1]  # more even is more entropy


def test_samples_known():
    # cumulative .5, .5, .75, 1: bin 1 is impossible
    log_probs = tensor([0.5, 0.0, 0.25, 0.25]).log()
    uniforms = tensor([0.0, 0.49, 0.5, 0.74, 0.75, 0.999])
    got = sample_from_uniforms(log_probs.expand(6, 4), uniforms)
    assert got.tolist() == [0, 0, 2, 2, 3, 3]


def test_samples_stay_among_the_possible_at_both_ends():
    log_probs = tensor([0.0, 1.0, 0.0]).log().expand(3, 3)
    # 1.0 and above cannot come from a generator, but rounding of the sum can leave it below u
    assert sample_from_uniforms(log_probs, tensor([0.0, 0.5, 1.0])).tolist() == [1, 1, 1]
    short = tensor([0.3, 0.3, 0.3, 0.0]).log()
    assert sample_from_uniforms(short, tensor(0.95)).item() == 2


@given(st.integers(0, 2**32))
def test_a_sample_is_possible_and_does_not_depend_on_its_batch(seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(6, 4, 16, generator=generator)
    logits[torch.rand(logits.shape, generator=generator) < 0.5] = -INF
    logits[..., 3] = 0.0
    log_probs, uniforms = action_log_softmax(logits), torch.rand(6, 4, generator=generator)
    tokens = sample_from_uniforms(log_probs, uniforms)
    assert (gather_log_probs(log_probs, tokens) > -INF).all()
    # where a uniform falls on the edge between two bins, rounding decides, and that may depend on the shape
    edges = log_probs.exp().cumsum(-1)
    clear = ((edges - uniforms[..., None]).abs() > 1e-5).all(-1)
    for n in range(6):
        alone = sample_from_uniforms(log_probs[n], uniforms[n])
        assert torch.equal(alone[clear[n]], tokens[n][clear[n]])


def test_an_even_grid_of_uniforms_gives_the_distribution():
    probs = tensor([0.1, 0.2, 0.0, 0.3, 0.4])
    uniforms = (torch.arange(10_000) + 0.5) / 10_000
    tokens = sample_from_uniforms(probs.log().expand(10_000, 5), uniforms)
    assert torch.bincount(tokens, minlength=5).tolist() == [1000, 2000, 0, 3000, 4000]
