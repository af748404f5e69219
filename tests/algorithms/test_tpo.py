"""TPO: its gradient against autograd of the written-out formula, and a bandit whose best arm is preferred."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from builders.group_runs import GroupRun, no_dense
from vla_rl.algorithms.tpo import TPO, Preferences, preferences_of
from vla_rl.config import OptimizerConfig, TPOConfig
from vla_rl.envs.known_answers import ChainEnv

CONFIG = TPOConfig(group_size=4, groups=6, beta=0.5)
FAST = OptimizerConfig(learning_rate=1e-3, warmup_steps=4)


def played_pairs(config: TPOConfig) -> tuple[GroupRun, Preferences, dict[str, float]]:
    run = GroupRun(ChainEnv, 7, group=config.group_size, groups=config.groups)
    played = run.play()
    preferences, numbers = preferences_of(played, no_dense(played), config)
    return run, preferences, numbers


def written_out(
    run: GroupRun, preferences: Preferences, reference: Tensor, config: TPOConfig
) -> Tensor:
    """The loss of all pairs as the formula has it, in one graph."""
    batch = preferences.batch
    every = torch.arange(len(batch))
    now = run.policy.evaluate(batch.observe(every), batch.tokens, batch.temperature)
    ratios = now.log_probs.sum(-1) - reference
    losses, chosen_ones = [], []
    for chosen, rejected in zip(preferences.chosen, preferences.rejected, strict=True):
        better = ratios[torch.from_numpy(batch.episodes == chosen)]
        likelihood = now.log_probs.sum(-1)[torch.from_numpy(batch.episodes == chosen)]
        worse = ratios[torch.from_numpy(batch.episodes == rejected)]
        if config.window == 0:
            differences = [better.sum() - worse.sum()]
            chosen_ones.append(likelihood.mean())
        else:
            shorter = min(len(better), len(worse))
            chosen_ones += [own.mean() for own in likelihood[:shorter].split(config.window)]
            differences = [
                better[t : min(t + config.window, shorter)].sum()
                - worse[t : min(t + config.window, shorter)].sum()
                for t in range(0, shorter, config.window)
            ]
        losses += [-torch.nn.functional.logsigmoid(config.beta * d) for d in differences]
    imitated = torch.stack(chosen_ones).mean()
    return torch.stack(losses).mean() - config.self_imitation_coef * imitated


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize(("micro_batch", "imitation"), [(0, 0.0), (3, 0.0), (0, 0.7), (3, 0.7)])
def test_gradient_is_that_of_the_formula(window: int, micro_batch: int, imitation: float) -> None:
    config = replace(CONFIG, window=window, micro_batch=micro_batch, self_imitation_coef=imitation)
    run, preferences, _ = played_pairs(config)
    assert len(preferences) >= 4
    batch = preferences.batch
    assert batch.episodes is not None
    assert len(set(np.unique(batch.episodes, return_counts=True)[1])) > 1, "episodes of one length"
    # far from zero: the slopes of the sigmoid differ from pair to pair
    reference = batch.log_probs.sum(-1) + 2 * torch.randn(
        len(batch), generator=torch.Generator().manual_seed(1)
    )
    parameters = run.policy.policy_parameters()
    loss = written_out(run, preferences, reference, config)
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    learner = TPO(run.policy, config, FAST, 0)
    compared = learner.compared(preferences, torch.arange(len(preferences)))
    stats = learner.backward(batch, compared, reference)
    assert stats["losses/policy"] == pytest.approx(loss.item(), rel=1e-4)
    largest = max(float(g.abs().max()) for g in expected if g is not None)
    assert largest > 1e-3
    for parameter, gradient in zip(parameters, expected, strict=True):
        if gradient is not None:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize("reference", ["start", "played"])
def test_the_bandits_best_arm_is_preferred(reference: str) -> None:
    config = replace(CONFIG, groups=8, reference=reference, beta=0.1, epochs=2)
    run = GroupRun(num_envs=16, group=4, groups=8, extra=4)
    run.policy.keep_reference()
    learner = TPO(run.policy, config, FAST, 0)
    for iteration in range(40):
        played = run.play(iteration)
        if run.success_of(played) > 0.95:
            return
        preferences, _ = preferences_of(played, no_dense(played), config)
        numbers = learner.update(preferences, iteration, 0.0)
        if iteration == 0:
            assert numbers["tpo/margin"] != 0 or reference == "played"
    raise AssertionError("a random policy gets 0.5, and so does this one")


def test_at_the_reference_nothing_is_told_apart() -> None:
    run, preferences, _ = played_pairs(replace(CONFIG, minibatch=100))
    run.policy.keep_reference()
    first = TPO(run.policy, replace(CONFIG, minibatch=100), FAST, 0).update(preferences, 0, 0.0)
    assert first["losses/policy"] == pytest.approx(np.log(2), abs=1e-4)
    assert first["tpo/margin"] == pytest.approx(0, abs=1e-3)
    assert first["losses/policy_steps"] == 1.0


def test_pairs_are_of_one_group_and_ties_are_counted() -> None:
    run = GroupRun(ChainEnv, 7, group=4, groups=6)
    played = run.play()
    preferences, numbers = preferences_of(played, no_dense(played), CONFIG)
    of = {e.number: e for e in played.collected.finished}
    for chosen, rejected in zip(preferences.chosen, preferences.rejected, strict=True):
        assert of[chosen].group == of[rejected].group
        assert of[chosen].success > of[rejected].success
    won = [sum(e.success for e in of.values() if e.group == g) for g in range(6)]
    assert numbers["tpo/ties"] == sum(w * (w - 1) / 2 + (4 - w) * (3 - w) / 2 for w in won)
    assert numbers["tpo/groups_without_pair"] == sum(w in (0, 4) for w in won)
    in_pairs = {*preferences.chosen.tolist(), *preferences.rejected.tolist()}
    assert preferences.batch.episodes is not None
    assert set(preferences.batch.episodes.tolist()) == in_pairs


def test_equals_are_ranked_by_what_else_has_a_weight() -> None:
    run = GroupRun(ChainEnv, 7, group=4, groups=6)
    played = run.play()
    rollout = played.collected.rollout
    likely = replace(CONFIG, likelihood_weight=0.01)
    numbers = preferences_of(played, no_dense(played), likely)[1]
    assert numbers["tpo/groups_without_pair"] == 0.0
    dense = np.where(rollout.valid, rollout.time_fraction + rollout.episode_ids, 0).astype("f4")
    preferences, numbers = preferences_of(
        played, dense, replace(CONFIG, success_weight=0.0, reward_weight=1.0)
    )
    assert numbers["tpo/groups_without_pair"] == 0.0
    worth = {n: dense[rollout.episode_ids == n].sum() for n in np.unique(rollout.episode_ids)}
    assert all(
        worth[c] > worth[r] for c, r in zip(preferences.chosen, preferences.rejected, strict=True)
    )


def test_without_a_pair_nothing_is_learned() -> None:
    run = GroupRun(ChainEnv, 7, group=4, groups=3)
    played = run.play()
    nothing = replace(CONFIG, success_weight=0.0, reward_weight=1.0)
    preferences, numbers = preferences_of(played, no_dense(played), nothing)
    assert (len(preferences), numbers["tpo/ties"]) == (0, 18.0)
    before = [p.detach().clone() for p in run.policy.policy_parameters()]
    assert TPO(run.policy, nothing, FAST, 0).update(preferences, 0, 0.0)["losses/policy_steps"] == 0
    assert all(map(torch.equal, before, run.policy.policy_parameters()))
