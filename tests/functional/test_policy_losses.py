"""The surrogate's gradient and limits, and what the KL estimators estimate."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, tensor

from vla_rl.functional import (
    KLEstimator,
    Ratio,
    clipped_surrogate,
    importance_weights,
    kl_estimate,
    surrogate_statistics,
    turn_mean,
)

RATIOS: list[Ratio] = ["token", "action"]


def random_turns(seed: int, batch: int = 5, tokens: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(batch, tokens, generator=generator) * 3
    new = old + 0.4 * torch.randn(batch, tokens, generator=generator)
    return new, old, torch.randn(batch, generator=generator)


def gradient(loss_of, at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    return torch.autograd.grad(loss_of(leaf), leaf)[0]


def log_of(*ratios: float) -> Tensor:
    """Log-probs whose ratio to zeros is as given."""
    return tensor(ratios).log()


@pytest.mark.parametrize("ratio", RATIOS)
@given(seed=st.integers(0, 2**32))
def test_at_ratio_1_the_gradient_is_minus_advantage_for_every_token(ratio: Ratio, seed: int):
    """d loss / d log pi(token) = -A / B: the gradient of -A log pi(a | o), whichever ratio is taken."""
    _, old, advantages = random_turns(seed)
    got = gradient(lambda new: clipped_surrogate(new, old, advantages, ratio=ratio), old)
    torch.testing.assert_close(got, -advantages[:, None].expand_as(old) / len(old))


@pytest.mark.parametrize("ratio", RATIOS)
def test_finite_differences(ratio: Ratio):
    """In float64, away from the kinks, with all branches in use."""
    advantages = tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    old = torch.zeros(4, 2, dtype=torch.float64)
    ratios = [[0.9, 1.5], [0.7, 3.9], [1.1, 0.5], [1.15, 0.95]]
    new = tensor(ratios, dtype=torch.float64).log().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, old, advantages, 0.2, 0.28, ratio=ratio, dual_clip=3.0), new
    )


@pytest.mark.parametrize(
    ("rho", "advantage", "surrogate"),
    [
        (1.5, 2.0, 2.56),  # clipped at 1 + .28, times 2
        (0.5, 2.0, 1.0),  # below the range, but min keeps it: 0.5 * 2
        (1.5, -2.0, -3.0),  # above the range, but min keeps it
        (0.5, -2.0, -1.6),  # clipped at 1 - .2
        (9.0, -2.0, -6.0),  # dual clip: 3 * -2 instead of -18
        (9.0, 2.0, 2.56),  # the dual clip is for negative advantages only
    ],
)
def test_asymmetric_and_dual_clip_known(rho: float, advantage: float, surrogate: float):
    for ratio in RATIOS:
        loss = clipped_surrogate(
            log_of(rho)[None],
            torch.zeros(1, 1),
            tensor([advantage]),
            0.2,
            0.28,
            ratio=ratio,
            dual_clip=3.0,
        )
        assert loss.item() == pytest.approx(-surrogate, rel=1e-6)


def test_tokens_are_summed_and_turns_averaged():
    # turn 1: 1.1 * 1 + 0.9 * 1 = 2; turn 2: (1 + 1) * -3 = -6; mean -2, as a loss +2
    new = torch.stack([log_of(1.1, 0.9), log_of(1.0, 1.0)])
    loss = clipped_surrogate(new, torch.zeros(2, 2), tensor([1.0, -3.0]))
    assert loss.item() == pytest.approx(2.0)
    # per action: turn 1: 1.1 * 0.9 = .99, turn 2: -3; mean -1.005
    loss = clipped_surrogate(new, torch.zeros(2, 2), tensor([1.0, -3.0]), ratio="action")
    assert loss.item() == pytest.approx(1.005)


@pytest.mark.parametrize(("ratio", "slope"), [("token", -1.15), ("action", 0.0)])
def test_action_ratio_clips_the_product(ratio: Ratio, slope: float):
    """Two tokens at 1.15 each are inside the token range and, multiplied (1.3225), outside the action range."""
    got = gradient(
        lambda new: clipped_surrogate(new, torch.zeros(1, 2), torch.ones(1), ratio=ratio),
        log_of(1.15, 1.15)[None],
    )
    torch.testing.assert_close(got, torch.full((1, 2), slope))


@pytest.mark.parametrize("ratio", RATIOS)
@given(seed=st.integers(0, 2**32))
def test_masked_tokens_never_matter(ratio: Ratio, seed: int):
    new, old, advantages = random_turns(seed)
    mask = torch.rand(new.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0] = False
    spoiled = torch.where(mask, new, torch.nan)
    kwargs: Any = {"ratio": ratio, "mask": mask}
    assert torch.equal(
        clipped_surrogate(spoiled, old, advantages, **kwargs),
        clipped_surrogate(new, old, advantages, **kwargs),
    )
    assert surrogate_statistics(spoiled, old, **kwargs) == surrogate_statistics(new, old, **kwargs)
    slope = gradient(lambda x: clipped_surrogate(x, old, advantages, **kwargs), spoiled)
    assert torch.equal(slope[~mask], torch.zeros_like(slope[~mask]))
    assert slope.isfinite().all()


def test_a_padded_turn_leaves_the_loss_as_it_was():
    new, old, advantages = random_turns(3)
    mask = torch.ones_like(new, dtype=torch.bool)
    mask[-1] = False
    padded = clipped_surrogate(new, old, advantages, mask=mask)
    torch.testing.assert_close(padded, clipped_surrogate(new[:-1], old[:-1], advantages[:-1]))


@given(seed=st.integers(0, 2**32))
def test_order_of_the_batch_does_not_matter(seed: int):
    new, old, advantages = random_turns(seed)
    torch.testing.assert_close(
        clipped_surrogate(new.flip(0), old.flip(0), advantages.flip(0)),
        clipped_surrogate(new, old, advantages),
    )


@pytest.mark.parametrize("ratio", RATIOS)
def test_bfloat16_is_computed_in_float32(ratio: Ratio):
    new, old, advantages = (x.bfloat16() for x in random_turns(1))
    short = clipped_surrogate(new, old, advantages, ratio=ratio)
    assert short.dtype == torch.float32
    assert torch.equal(
        short, clipped_surrogate(new.float(), old.float(), advantages.float(), ratio=ratio)
    )


def test_an_exploded_ratio_gives_no_nan():
    """exp(200) is infinite: a good action clipped there has gradient 0, not 0 * inf."""
    slope = gradient(
        lambda x: clipped_surrogate(x, torch.zeros(2, 1), tensor([1.0, -1.0]), dual_clip=3.0),
        tensor([[200.0], [200.0]]),
    )
    assert torch.equal(slope, torch.zeros(2, 1))


@pytest.mark.parametrize("shape", [(5, 1), (3,), (5, 3), ()])
def test_advantages_must_be_one_per_turn(shape: tuple[int, ...]):
    new, old, _ = random_turns(0)
    with pytest.raises(Exception, match=r"advantage|type"):
        clipped_surrogate(new, old, torch.ones(shape))


def test_log_probs_must_not_broadcast():
    new, old, advantages = random_turns(0)
    for wrong in (old.sum(1, keepdim=True), old[:, 0]):
        with pytest.raises(Exception, match=r"one shape|type"):
            clipped_surrogate(new, wrong, advantages)
        with pytest.raises(Exception, match=r"one shape|type"):
            surrogate_statistics(new, wrong)


def test_statistics_known():
    # ratios .5 (outside), 1, 1.25 (inside, high is .28), 2 (outside): half are clipped
    new = torch.stack([log_of(0.5, 1.0), log_of(1.25, 2.0)])
    got = surrogate_statistics(new, torch.zeros(2, 2), 0.2, 0.28)
    assert got.clip_fraction.item() == 0.5
    assert got.ratio_mean.item() == pytest.approx(4.75 / 4)
    assert got.ratio_max.item() == pytest.approx(2.0)
    # k1 = -log ratio, summed a turn: -log .5 = log 2 and -log 2.5; mean (log 2 - log 2.5) / 2
    assert got.approx_kl_k1.item() == pytest.approx(math.log(0.8) / 2, rel=1e-5)
    # k3 adds ratio - 1: turn sums -.5 and 1.25, mean .375
    assert got.approx_kl_k3.item() == pytest.approx(math.log(0.8) / 2 + 0.375, rel=1e-5)
    # per action the ratios are .5 and 2.5, both outside
    got = surrogate_statistics(new, torch.zeros(2, 2), 0.2, 0.28, ratio="action")
    assert got.clip_fraction.item() == 1.0
    assert got.ratio_max.item() == pytest.approx(2.5)
    assert got.approx_kl_k3.item() == pytest.approx(math.log(0.8) / 2 + 0.375, rel=1e-5)


@pytest.mark.parametrize("ratio", RATIOS)
def test_statistics_of_an_unmoved_policy(ratio: Ratio):
    _, old, _ = random_turns(0)
    got = surrogate_statistics(old, old, 0.0, 0.0, ratio=ratio)
    assert [x.item() for x in got] == [0.0, 1.0, 1.0, 0.0, 0.0]


def test_turn_mean_known():
    per_token = tensor([[1.0, 2.0], [3.0, 4.0], [5.0, torch.nan]])
    mask = tensor([[True, True], [False, False], [True, False]])
    assert turn_mean(per_token[:2]).item() == 5.0  # (3 + 7) / 2
    assert turn_mean(per_token, mask).item() == 4.0  # (3 + 5) / 2: a turn without tokens is none
    assert turn_mean(per_token, torch.zeros_like(mask)).item() == 0.0


# Exact checks over a distribution of five outcomes: expectations are sums.


def two_distributions(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    return logits[0], torch.log_softmax(logits[1], -1)


def exact_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


@given(seed=st.integers(0, 2**32))
def test_k1_and_k3_are_unbiased_for_kl_from_the_sampled_policy(seed: int):
    logits, reference = two_distributions(seed)
    policy = torch.log_softmax(logits, -1)
    for estimator in ("k1", "k3"):
        mean = (policy.exp() * kl_estimate(policy, reference, estimator)).sum()
        torch.testing.assert_close(mean, exact_kl(policy, reference))


@given(seed=st.integers(0, 2**32))
def test_expected_gradients_of_the_estimators(seed: int):
    """As losses: k1 does nothing on average, k2 descends KL(pi || ref), k3 descends KL(ref || pi)."""
    logits, reference = two_distributions(seed)

    def slope(loss_of) -> Tensor:
        return gradient(lambda x: loss_of(torch.log_softmax(x, -1)), logits)

    def expected(estimator: KLEstimator) -> Tensor:
        return slope(lambda p: (p.detach().exp() * kl_estimate(p, reference, estimator)).sum())

    torch.testing.assert_close(expected("k1"), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(expected("k2"), slope(lambda p: exact_kl(p, reference)))
    torch.testing.assert_close(expected("k3"), slope(lambda p: exact_kl(reference, p)))


def test_kl_estimates_known():
    # sampled from pi = 1/2, other 1/4: log ratio l = -log 2
    pi, other = log_of(0.5), log_of(0.25)
    assert kl_estimate(pi, other, "k1").item() == pytest.approx(math.log(2))
    assert kl_estimate(pi, other, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(pi, other, "k3").item() == pytest.approx(math.log(2) - 0.5)


@settings(max_examples=200)
@given(st.floats(-1e4, 0, width=32), st.floats(-1e4, 0, width=32))
def test_k2_and_k3_are_never_negative_nor_infinite(a: float, b: float):
    for estimator in ("k2", "k3"):
        got = kl_estimate(tensor(a), tensor(b), estimator).item()
        assert 0 <= got < math.inf
        assert kl_estimate(tensor(a), tensor(a), estimator).item() == 0.0


def test_unknown_names_are_errors():
    new, old, advantages = random_turns(0)
    with pytest.raises(Exception, match=r"k4"):
        kl_estimate(new, old, "k4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(Exception, match=r"sequence"):
        clipped_surrogate(
            new,
            old,
            advantages,
            ratio="sequence",  # pyright: ignore[reportArgumentType]
        )


def all_actions(bins: int, tokens: int) -> Tensor:
    """Every sequence of tokens, one a row."""
    return torch.cartesian_prod(*[torch.arange(bins)] * tokens).reshape(-1, tokens)


def token_log_probs(logits: Tensor, actions: Tensor) -> Tensor:
    """Of independent tokens; logits (K, bins), actions (B, K)."""
    log_probs = logits.log_softmax(-1)
    return log_probs[torch.arange(actions.shape[1]), actions]


@pytest.mark.parametrize("ratio", RATIOS)
@given(seed=st.integers(0, 1000))
def test_weighted_turns_of_another_policy_give_the_gradient_of_the_proximal_ones(
    ratio: Ratio, seed: int
):
    """A bandit with all its actions in the batch, as often as a policy takes them: expectations are exact."""
    generator = torch.Generator().manual_seed(seed)
    behavior, proximal, new = torch.randn(
        3, 2, 3, generator=generator, dtype=torch.float64
    ).unbind()
    new = proximal + 0.3 * new
    actions = all_actions(3, 2)
    rewards = torch.randn(len(actions), generator=generator, dtype=torch.float64)
    of_proximal = token_log_probs(proximal, actions)
    of_behavior = token_log_probs(behavior, actions)

    def loss(leaf: Tensor, sampled_from: Tensor, importance: Tensor | None) -> Tensor:
        frequency = sampled_from.sum(-1).exp() * len(actions)
        return clipped_surrogate(
            token_log_probs(leaf, actions), of_proximal, frequency * rewards,
            ratio=ratio, importance=importance,
        )  # fmt: skip

    weights = importance_weights(of_proximal, of_behavior)
    ours = gradient(lambda leaf: loss(leaf, of_behavior, weights), new)
    expected = gradient(lambda leaf: loss(leaf, of_proximal, None), new)
    torch.testing.assert_close(ours, expected)
    unweighted = gradient(lambda leaf: loss(leaf, of_behavior, None), new)
    assert not torch.allclose(unweighted, expected, rtol=1e-3)


def test_importance_weights_known():
    behavior, proximal = log_of(1.0, 1.0)[None], log_of(2.0, 1.5)[None]
    assert importance_weights(proximal, behavior).tolist() == pytest.approx([3.0])
    assert importance_weights(proximal, behavior, cap=2.0).tolist() == [2.0]
    assert importance_weights(behavior, behavior, cap=2.0).tolist() == [1.0]
