"""OpenVLAPolicy: sampler and learner agree, rows do not depend on each other, critics see what they should."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.policies import (
    INSTRUCTIONS,
    UNKNOWN,
    make_observation,
    make_policy,
    sharpen,
    tiny_policy,
)
from vla_rl.config import UserError, tiny_model
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.types import Observation

MIXED = make_observation(9)
EQUAL = make_observation(5, texts=INSTRUCTIONS[:2])


def uniforms(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 8), dtype=np.float32)


def perturb_critic(policy: OpenVLAPolicy) -> None:
    """The shared head starts at zero; give it something to say."""
    with torch.no_grad():
        for parameter in policy.critic_parameters():
            generator = torch.Generator().manual_seed(2)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


@pytest.mark.parametrize("observation", [MIXED, EQUAL], ids=["unequal prompts", "equal prompts"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_act_and_evaluate_agree(
    policy: OpenVLAPolicy, observation: Observation, temperature: float
) -> None:
    out = policy.act(observation, temperature)
    again = policy.evaluate(observation, out.tokens, temperature)
    torch.testing.assert_close(out.log_probs, again.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.values, again.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.values, policy.values(observation), atol=1e-5, rtol=0)
    assert out.log_probs.dtype == torch.float32


def test_rows_do_not_depend_on_the_batch(policy: OpenVLAPolicy) -> None:
    """With given uniforms: batches of 1, 7 and 16, and any order, give the same tokens."""
    perturb_critic(policy)
    observation, draws = make_observation(16), uniforms(16)
    whole = policy.act(observation, 1.0, draws)
    order = np.random.default_rng(5).permutation(16).tolist()
    for rows in ([3], list(range(7)), order):
        part = policy.act(observation.select(rows), 1.0, draws[rows])
        assert torch.equal(part.tokens, whole.tokens[rows])
        torch.testing.assert_close(part.log_probs, whole.log_probs[rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(part.values, whole.values[rows], atol=1e-5, rtol=0)


def test_greedy_takes_the_likeliest_token_and_is_alone_in_its_row(policy: OpenVLAPolicy) -> None:
    whole = policy.act(MIXED, 0.0)
    assert (whole.log_probs == 0).all()
    for row in (0, 3):
        assert torch.equal(policy.act(MIXED.select([row]), 0.0).tokens[0], whole.tokens[row])
    cold = policy.act(MIXED, 1e-4)
    assert (cold.tokens == whole.tokens).float().mean() > 0.9


def test_padding_changes_nothing(policy: OpenVLAPolicy) -> None:
    """A row next to a much longer prompt gives what it gives alone: log-probs, entropy and value."""
    perturb_critic(policy)
    observation = make_observation(2, texts=(INSTRUCTIONS[0], UNKNOWN))
    lengths = policy.processor.prompts(observation.instructions, policy.device).lengths
    assert lengths[1] > 2 * lengths[0]
    tokens = torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(0))
    both = policy.evaluate(observation, tokens)
    for row in (0, 1):
        alone = policy.evaluate(observation.select([row]), tokens[row : row + 1])
        for name in ("log_probs", "entropy", "values"):
            torch.testing.assert_close(
                getattr(alone, name)[0], getattr(both, name)[row], atol=1e-5, rtol=0
            )


def test_value_sees_image_instruction_and_time(policy: OpenVLAPolicy) -> None:
    perturb_critic(policy)
    base = policy.values(EQUAL)
    others = (
        replace(EQUAL, images=255 - EQUAL.images),
        replace(EQUAL, instructions=(INSTRUCTIONS[2],) * 5),
        replace(EQUAL, time_fraction=EQUAL.time_fraction + 0.5),
    )
    for other in others:
        assert ((policy.values(other) - base).abs() > 1e-4).all()


def test_time_never_reaches_the_policy(policy: OpenVLAPolicy) -> None:
    later = replace(EQUAL, time_fraction=EQUAL.time_fraction + 0.5)
    draws = uniforms(5)
    now, then = policy.act(EQUAL, 1.0, draws), policy.act(later, 1.0, draws)
    assert torch.equal(now.tokens, then.tokens)
    assert torch.equal(now.log_probs, then.log_probs)


def test_critic_without_time(policy: OpenVLAPolicy) -> None:
    blind = make_policy(policy.config.critic.kind, time_fraction=False)
    perturb_critic(blind)
    later = replace(EQUAL, time_fraction=EQUAL.time_fraction + 0.5)
    assert torch.equal(blind.values(EQUAL), blind.values(later))


def test_critic_steps_leave_the_policy_bit_identical(policy: OpenVLAPolicy) -> None:
    """Critic warm-up: with detached values no gradient reaches the model, and its outputs do not change."""
    draws = uniforms(9)
    before = policy.act(MIXED, 1.0, draws)
    policy.detach_values = True
    optimizer = torch.optim.Adam(policy.critic_parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        evaluation = policy.evaluate(MIXED, before.tokens)
        ((policy.values(MIXED) - 1).square().sum() + evaluation.values.sum()).backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    after = policy.act(MIXED, 1.0, draws)
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.log_probs, after.log_probs)
    assert not torch.allclose(before.values, after.values)


def test_attached_shared_critic_does_reach_the_trunk() -> None:
    policy = make_policy("shared")
    perturb_critic(policy)
    policy.values(EQUAL).sum().backward()
    assert policy.model.projector.fc1.weight.grad.abs().max() > 0
    detached = make_policy("shared", detach=True)
    perturb_critic(detached)
    detached.values(EQUAL).sum().backward()
    detached.evaluate(EQUAL, detached.act(EQUAL).tokens).values.sum().backward()
    assert all(parameter.grad is None for parameter in detached.model.parameters())


def test_every_policy_parameter_gets_a_gradient_and_no_critic_one(policy: OpenVLAPolicy) -> None:
    policy.evaluate(MIXED, policy.act(MIXED).tokens).log_probs.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.policy_parameters())
    assert all(parameter.grad is None for parameter in policy.critic_parameters())
    trained = {id(p) for p in policy.policy_parameters()}
    assert not trained & {id(p) for p in policy.critic_parameters()}
    tower = policy.model.vision_backbone.featurizer
    assert not trained & {id(p) for p in tower.unused_parameters()}


def test_gradient_matches_finite_differences() -> None:
    """The hand-written backward of the CPU product, through the whole model, along a random direction."""
    policy = sharpen(make_policy())
    observation = make_observation(64)
    tokens = policy.act(observation, temperature=0.0).tokens
    weight = policy.model.language_model.model.layers[0].mlp.gate_proj.weight
    bias = policy.model.projector.fc1.bias
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(p.shape, generator=generator) for p in (weight, bias)]
    policy.evaluate(observation, tokens).log_probs.mean().backward()
    for parameter, direction in zip((weight, bias), directions, strict=True):
        slope = (parameter.grad * direction).sum().item()
        step, sides = 1e-3, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * step)
                sides.append(policy.evaluate(observation, tokens).log_probs.double().mean().item())
                parameter.sub_(direction, alpha=sign * step)
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(slope, rel=0.02, abs=2e-4)


def test_exactly_k_tokens_within_the_bins(policy: OpenVLAPolicy) -> None:
    out = policy.act(MIXED, 5.0)
    assert out.tokens.shape == (9, 8)
    assert out.tokens.dtype == torch.int64
    assert ((out.tokens >= 0) & (out.tokens < 32)).all()


def test_only_action_rows_of_the_head_count(policy: OpenVLAPolicy) -> None:
    """Text ids compete for nothing: raising their logits sky-high changes no log-prob."""
    out = policy.act(MIXED, 1.0, uniforms(9))
    head = policy.model.language_model.lm_head.weight
    with torch.no_grad():
        head[:480].fill_(100.0)
        head[512:].fill_(100.0)
    again = policy.act(MIXED, 1.0, uniforms(9))
    assert torch.equal(out.tokens, again.tokens)
    assert torch.equal(out.log_probs, again.log_probs)


def test_probabilities_sum_to_one_over_the_bins() -> None:
    """exp(log-prob) over all 32 first tokens is 1 at any temperature, and entropy is that of this distribution."""
    policy = sharpen(make_policy())
    single = make_observation(1)
    every = Observation.concatenate([single] * 32)
    tokens = torch.zeros((32, 8), dtype=torch.int64)
    tokens[:, 0] = torch.arange(32)
    entropies = []
    for temperature in (0.7, 1.0, 1.5):
        evaluation = policy.evaluate(every, tokens, temperature)
        p = evaluation.log_probs[:, 0].exp()
        assert p.sum().item() == pytest.approx(1.0, abs=1e-5)
        entropies.append(evaluation.entropy[0, 0].item())
        assert entropies[-1] == pytest.approx(-(p * p.log()).sum().item(), abs=1e-4)
    assert entropies[0] < entropies[1] < entropies[2] <= math.log(32)


def test_sampling_frequencies_follow_the_tempered_distribution() -> None:
    policy = sharpen(make_policy())
    single = make_observation(1)
    many = Observation.concatenate([single] * 512)
    draws = np.tile(((np.arange(512) + 0.5) / 512).astype(np.float32)[:, None], (1, 8))
    tokens = policy.act(many, 1.5, draws).tokens[:, 0]
    counts = torch.bincount(tokens, minlength=32) / 512
    every = torch.zeros((32, 8), dtype=torch.int64)
    every[:, 0] = torch.arange(32)
    p = policy.evaluate(Observation.concatenate([single] * 32), every, 1.5).log_probs[:, 0].exp()
    assert (counts - p).abs().max() < 2 / 512


def test_sampling_follows_the_global_generator() -> None:
    policy = make_policy()
    torch.manual_seed(4)
    first, second = policy.act(MIXED).tokens, policy.act(MIXED).tokens
    torch.manual_seed(4)
    assert torch.equal(policy.act(MIXED).tokens, first)
    assert not torch.equal(first, second)


def test_reference_is_the_initial_policy_and_stays(policy: OpenVLAPolicy) -> None:
    policy.keep_reference()
    tokens = policy.act(MIXED).tokens
    before = policy.evaluate(MIXED, tokens, 1.3).log_probs.detach()
    optimizer = torch.optim.SGD(policy.policy_parameters(), lr=0.1)
    policy.evaluate(MIXED, tokens).log_probs.mean().backward()
    optimizer.step()
    assert not torch.allclose(policy.evaluate(MIXED, tokens, 1.3).log_probs, before)
    reference = policy.reference_log_probs(MIXED, tokens, 1.3)
    torch.testing.assert_close(reference, before, atol=1e-5, rtol=0)
    assert not reference.requires_grad
    assert not any("reference" in name for name in policy.state_dict())


def test_a_late_reference_is_refused() -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.policy_parameters()[0].add_(1.0)
    with pytest.raises(RuntimeError, match="keep_reference"):
        policy.reference_log_probs(EQUAL, policy.act(EQUAL).tokens)


def test_actions_round_trip_in_the_simulators_units() -> None:
    stats = {"x": {"action": {"q01": [-2.0, 0.0], "q99": [4.0, 1.0], "mask": [True, False]}}}
    policy = OpenVLAPolicy.create(tiny_model(), INSTRUCTIONS, stats, 2, 3)
    tokens = torch.randint(0, 32, (50, 6), generator=torch.Generator().manual_seed(0))
    actions = policy.decode_actions(tokens)
    assert actions.shape == (50, 3, 2)
    assert torch.equal(policy.encode_actions(actions), tokens)
    ends = policy.decode_actions(torch.tensor([[0, 0, 31, 31, 0, 31]]))
    assert ends.tolist() == [[[-2.0, -1.0], [4.0, 1.0], [-2.0, 1.0]]]


def test_wrong_inputs_are_named() -> None:
    policy = make_policy()
    with pytest.raises(UserError, match=r"env\.image_size to 64"):
        policy.act(make_observation(2, size=96))
    with pytest.raises(UserError, match="2 actions of size 4"):
        policy.encode_actions(np.zeros((3, 2, 7), np.float32))
    with pytest.raises(ValueError, match="uniforms must have shape"):
        policy.act(EQUAL, 1.0, np.zeros((5, 7), np.float32))
    with pytest.raises(ValueError, match="temperature"):
        policy.act(EQUAL, -1.0)
    with pytest.raises(ValueError, match="temperature"):
        policy.evaluate(EQUAL, policy.act(EQUAL).tokens, 0.0)
    with pytest.raises(UserError, match="4 dimensions, the policy 7"):
        OpenVLAPolicy.create(tiny_model(), INSTRUCTIONS, identity_statistics("mt5", 4), 7, 1)


def test_the_seed_decides_the_weights() -> None:
    one, same, other = make_policy(seed=1), make_policy(seed=1), make_policy(seed=2)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if a.ndim > 1 and a.abs().sum() > 0:
            assert not torch.equal(a, c)


@pytest.mark.slow
def test_learns_where_a_square_is() -> None:
    """Cross-entropy on the position of a bright square, along the axis that the instruction names."""
    texts = ("left right", "up down")
    policy = tiny_policy(texts, action_chunk=1)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(policy.policy_parameters(), lr=1e-3)
    losses: list[float] = []
    # half of the positions' entropy takes about 100 steps, some seeds more
    while len(losses) < 400 and not np.mean(losses[-10:] or [np.inf]) < 2.6:
        axes, places = rng.integers(0, 2, 32), rng.integers(0, 49, (32, 2))
        images = np.full((32, 64, 64, 3), 60, np.uint8)
        for image, (x, y) in zip(images, places, strict=True):
            image[y : y + 16, x : x + 16] = 220
        named = places[np.arange(32), axes] / 24 - 1
        tokens = policy.encode_actions(np.repeat(named, 4).reshape(32, 1, 4))
        observation = Observation(
            images,
            tuple(texts[axis] for axis in axes),
            np.zeros((32, 4), np.float32),
            np.zeros(32, np.float32),
        )
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (len(losses) + 1) / 30)
        optimizer.zero_grad()
        log_probs = policy.evaluate(observation, tokens).log_probs
        (-log_probs.mean()).backward()
        optimizer.step()
        losses.append(-log_probs[:, 0].mean().item())
    # log 32 = 3.47 is a guess, and to know the axis alone says nothing of the place on it
    assert losses[0] > 3.0
    assert np.mean(losses[-10:]) < 2.6
