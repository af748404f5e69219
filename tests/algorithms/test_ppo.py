"""PPO against answers that are known: a bandit it must solve, a chain whose values are known, exact relations."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.policies import narrow_policy
from vla_rl.algorithms.advantages import compute_advantages
from vla_rl.algorithms.learner import TrainingDivergedError
from vla_rl.algorithms.minibatches import Order, minibatches
from vla_rl.algorithms.ppo import PPO
from vla_rl.config import (
    CriticConfig,
    CurriculumConfig,
    EnvConfig,
    OptimizerConfig,
    PPOConfig,
    RolloutConfig,
)
from vla_rl.curriculum import TaskSampler
from vla_rl.envs.known_answers import BanditEnv, ChainEnv
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.evaluation.episodes import play_each_once
from vla_rl.rollout import Collector
from vla_rl.types import EpisodeSpec

SHARED = CriticConfig(kind="shared", time_fraction=False)
SEPARATE = CriticConfig(kind="separate", time_fraction=True)


class Practice:
    """A policy, a known-answer environment and a learner, put together as the recipe does."""

    def __init__(
        self,
        env_class: type,
        horizon: int,
        critic: CriticConfig,
        ppo: PPOConfig,
        num_envs: int = 16,
        turns: int = 16,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        env_config = EnvConfig(num_envs=num_envs, horizon=horizon, image_size=32, action_chunk=1)
        self.envs = SerialVectorEnv(
            env_config, lambda config, count: [env_class(config) for _ in range(count)]
        )
        self.policy = narrow_policy([*BanditEnv.instructions, *ChainEnv.instructions], critic, seed)
        self.ppo, self.play = ppo, RolloutConfig(turns=turns)
        optimizer = OptimizerConfig(learning_rate=learning_rate, warmup_steps=4)
        self.learner = PPO(self.policy, ppo, optimizer, critic, seed=seed)
        states = np.arange(10, dtype=np.int64)
        self.curriculum = TaskSampler(CurriculumConfig(), self.envs.tasks, states, seed=seed)
        self.collector = Collector(self.policy, self.envs, self.curriculum.draw_one, seed=seed)
        self.collector.start()
        self.iteration = 0

    def rollout(self):
        play = self.play
        collected = self.collector.collect(play.turns, play.temperature, self.iteration)
        self.curriculum.end_window(collected.outcomes)
        return collected.rollout

    def batch(self):
        rollout = self.rollout()
        return compute_advantages(rollout, np.zeros_like(rollout.rewards), self.ppo)

    def improve(self) -> dict[str, float]:
        metrics = self.learner.update(self.batch(), self.iteration, 0.0)
        self.iteration += 1
        return metrics

    def practise_until(
        self, wanted: Callable[[float], bool], sign: float = 1.0, at_most: int = 40
    ) -> bool:
        """Train until sampled play succeeds as often as wanted; half a dozen iterations do, how many is the seed's.

        `sign` is that of the advantages.
        """
        for _ in range(at_most):
            batch = self.batch()
            if wanted(batch.succeeded.double().mean().item()):
                return True
            batch = replace(batch, advantages=sign * batch.advantages)
            self.learner.update(batch, self.iteration, 0.0)
            self.iteration += 1
        return False

    def success(self, states: int = 10) -> float:
        specs = [EpisodeSpec(self.envs.tasks[0], i) for i in range(states)]
        return float(np.mean([r.success for r in play_each_once(self.policy, self.envs, specs)]))


FAST = PPOConfig(minibatch=64, epochs=2, critic_warmup=0, self_imitation_coef=0.0)


@pytest.mark.parametrize("ratio", ["token", "action"])
def test_bandit_is_solved_exactly_by_the_surrogate_alone(ratio: str):
    practice = Practice(BanditEnv, 1, SEPARATE, replace(FAST, ratio=ratio))
    assert practice.practise_until(lambda rate: rate > 0.95)  # a random policy gets 0.5
    assert practice.success() == 1.0


def test_bandit_is_not_solved_with_the_sign_of_the_advantage_turned():
    """The test above can fail: with the wrong sign the policy learns the wrong arm."""
    practice = Practice(BanditEnv, 1, SEPARATE, FAST)
    assert practice.practise_until(lambda rate: rate < 0.05, sign=-1.0)
    assert practice.success() == 0.0


@pytest.mark.parametrize("critic", [SHARED, SEPARATE], ids=["shared", "separate"])
def test_critic_learns_the_values_of_the_chain(critic: CriticConfig):
    """The policy is frozen by endless warm-up; its values follow from Monte-Carlo returns of the same policy."""
    ppo = replace(FAST, critic_warmup=1000, critic_learning_rate=3e-3, critic_epochs=4, gamma=0.9)
    practice = Practice(ChainEnv, 30, critic, ppo, turns=40)
    before = [p.detach().clone() for p in practice.policy.policy_parameters()]
    explained = [practice.improve()["losses/explained_variance"] for _ in range(6)]
    assert explained[0] < 0.1  # before anything is learned
    assert max(explained[1:]) > 0.3
    after = practice.policy.policy_parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_policy_outputs_are_bit_identical_before_and_after_critic_warmup():
    practice = Practice(ChainEnv, 10, SHARED, replace(FAST, critic_warmup=2))
    observation = practice.collector.current[0]
    uniforms = np.full((len(observation), 4), 0.3, np.float32)
    before = practice.policy.act(observation, 1.0, uniforms)
    for _ in range(2):
        assert practice.improve()["losses/critic_warmup"] == 1.0
    after = practice.policy.act(observation, 1.0, uniforms)
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.log_probs, after.log_probs)
    assert not torch.equal(before.values, after.values)
    assert not practice.learner.policy.optimizer.state, (
        "the policy optimizer was stepped in warm-up"
    )
    assert practice.improve()["losses/critic_warmup"] == 0.0
    assert practice.learner.policy.optimizer.state


def test_ratio_is_one_at_the_first_minibatch_and_moves_after_an_update():
    practice = Practice(BanditEnv, 1, SEPARATE, replace(FAST, epochs=1, minibatch=10_000))
    batch = practice.batch()
    first = practice.learner.update(batch, 0, 0.0)
    assert first["losses/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert first["losses/clip_fraction"] == 0.0
    assert first["losses/logprob_max_difference"] < 1e-5
    again = practice.learner.policy.backward(batch, [torch.arange(len(batch))])
    assert again["losses/approx_kl_k3"] > 1e-6


@pytest.mark.parametrize("recompute", [True, False])
def test_recomputed_log_probs_take_the_samplers_rounding_out_of_the_ratio(recompute: bool):
    """Noise on the sampler's log-probs stands for bfloat16, where decoding and the learner's pass round differently."""
    ppo = replace(
        FAST, epochs=1, minibatch=10_000, recompute_log_probs=recompute, logprob_tolerance=0.5
    )
    practice = Practice(BanditEnv, 1, SEPARATE, ppo)
    batch = practice.batch()
    noise = 0.1 * torch.rand(batch.log_probs.shape, generator=torch.Generator().manual_seed(0))
    first = practice.learner.update(replace(batch, log_probs=batch.log_probs - noise), 0, 0.0)
    assert first["losses/logprob_max_difference"] == pytest.approx(float(noise.max()), abs=1e-5)
    unit = first["losses/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert unit is recompute


def test_gradient_of_a_minibatch_does_not_depend_on_micro_batches():
    whole, parts = (
        Practice(ChainEnv, 10, SHARED, replace(FAST, micro_batch=size)) for size in (0, 7)
    )
    for practice in (whole, parts):
        practice.learner.policy.backward(practice.batch(), [torch.arange(60)])
    for a, b in zip(
        whole.policy.policy_parameters(), parts.policy.policy_parameters(), strict=True
    ):
        if a.grad is not None:
            # a sum over 60 samples in another order: rounding is a share of the largest entry, not of each
            torch.testing.assert_close(
                a.grad, b.grad, rtol=0, atol=1e-4 * a.grad.abs().max().item()
            )


def test_sampler_and_learner_that_disagree_are_an_error():
    practice = Practice(BanditEnv, 1, SEPARATE, FAST)
    batch = practice.batch()
    with pytest.raises(TrainingDivergedError, match="log-probs differ"):
        practice.learner.update(replace(batch, temperature=1.5), 0, 0.0)


def updated(
    versions: int | None, behavior: float = 0.0
) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Numbers and weights after an update of iteration 3 on turns that were played after `versions` windows."""
    practice = Practice(BanditEnv, 1, SEPARATE, replace(FAST, importance_cap=1.5))
    batch = practice.batch()
    of = None if versions is None else np.full(len(batch), versions)
    batch = replace(batch, versions=of, log_probs=batch.log_probs + behavior)
    return practice.learner.update(batch, 3, 0.0), list(practice.policy.policy_parameters())


def test_turns_of_the_learners_own_weights_are_learned_as_if_nothing_was_known_of_versions():
    (own, weights), (expected, expected_weights) = updated(3), updated(None)
    assert own == expected
    assert all(torch.equal(a, b) for a, b in zip(weights, expected_weights, strict=True))


def test_turns_of_older_weights_are_weighted_and_do_not_count_as_a_sampler_that_disagrees():
    # the weights that played found each of 4 tokens 5 % likelier, which is a weight of exp(-0.2)
    older, _ = updated(2, behavior=0.05)
    assert older["losses/stale_turns"] == 1.0
    assert older["losses/importance_mean"] == pytest.approx(math.exp(-0.2), rel=1e-4)
    assert older["losses/logprob_max_difference"] == 0.0
    assert updated(2, behavior=-0.5)[0]["losses/importance_max"] == pytest.approx(1.5)  # the cap
    with pytest.raises(TrainingDivergedError, match="log-probs differ"):
        updated(3, behavior=0.05)


def test_not_a_number_stops_before_any_weight_changes():
    practice = Practice(BanditEnv, 1, SEPARATE, FAST)
    batch = practice.batch()
    before = [p.detach().clone() for p in practice.policy.policy_parameters()]
    poisoned = replace(batch, advantages=torch.full_like(batch.advantages, float("nan")))
    with pytest.raises(TrainingDivergedError, match="not finite"):
        practice.learner.update(poisoned, 0, 0.0)
    assert all(
        torch.equal(a, b) for a, b in zip(before, practice.policy.policy_parameters(), strict=True)
    )


def test_a_last_step_to_weights_too_large_to_use_is_noticed():
    """No other step follows whose loss would tell."""
    ppo = replace(FAST, epochs=1, minibatch=10_000)
    practice = Practice(BanditEnv, 1, SEPARATE, ppo, learning_rate=1e30)
    with pytest.raises(TrainingDivergedError, match="log-probs are not finite after the update"):
        practice.improve()


@pytest.mark.parametrize("part", ["policy", "critic"])
def test_a_step_to_a_weight_that_is_not_finite_is_noticed(part: str):
    practice = Practice(BanditEnv, 1, SEPARATE, replace(FAST, epochs=1, minibatch=10_000))
    optimizer = getattr(practice.learner, part).optimizer

    def spoil(*_: object) -> None:
        with torch.no_grad():
            optimizer.param_groups[0]["params"][-1].view(-1)[0] = float("inf")

    optimizer.register_step_post_hook(spoil)
    with pytest.raises(TrainingDivergedError, match=f"{part}'s weights are not finite"):
        practice.improve()


def test_target_kl_stops_the_epochs():
    ppo = replace(FAST, epochs=50, target_kl=0.01)
    practice = Practice(BanditEnv, 1, SEPARATE, ppo, learning_rate=1e-2)
    steps = practice.improve()["losses/policy_steps"]
    assert 1 <= steps < 50 * 4


def test_kl_to_the_reference_keeps_the_policy_near_it():
    free, held = (Practice(BanditEnv, 1, SEPARATE, replace(FAST, kl_coef=c)) for c in (0.0, 5.0))
    for practice in (free, held):
        practice.policy.keep_reference()
        for _ in range(5):
            practice.improve()
        observation, tokens = practice.collector.current[0], torch.zeros(8, 4, dtype=torch.int64)
        with torch.no_grad():
            now = practice.policy.evaluate(observation, tokens).log_probs
        practice.drift = float(
            (now - practice.policy.reference_log_probs(observation, tokens)).abs().mean()
        )
    assert held.drift < 0.5 * free.drift


def test_imitation_term_raises_the_likelihood_of_own_successes_only():
    practice = Practice(BanditEnv, 1, SEPARATE, replace(FAST, self_imitation_coef=1.0, epochs=1))
    batch = practice.batch()
    rows = torch.arange(len(batch))
    silent = replace(batch, advantages=torch.zeros_like(batch.advantages))

    def likelihood() -> torch.Tensor:
        with torch.no_grad():
            return practice.policy.evaluate(batch.observation, batch.tokens).log_probs.sum(-1)

    before = likelihood()
    for _ in range(5):
        practice.learner.policy.backward(silent, [rows])
        practice.learner.policy.optimizer.step()
    change = likelihood() - before
    assert change[batch.succeeded].mean() > 0
    assert change[batch.succeeded].mean() > change[~batch.succeeded].mean()


def test_every_sample_is_used_once_an_epoch_in_a_fresh_order():
    shards = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    steps = list(minibatches(shards, None, 2, 4, Order(0, 0, "policy")))
    assert [len(torch.cat(parts)) for parts in steps] == [5, 4, 3] * 2
    for parts in steps:
        assert [set(shards[part.numpy()]) for part in parts] == [{0}, {1}]
    halves = steps[:3], steps[3:]
    first, second = (torch.cat([rows for parts in half for rows in parts]) for half in halves)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("own", [range(0, 1), range(1, 3)])
def test_a_process_draws_its_own_shards_as_everybody_else_would(own: range):
    shards = np.repeat([0, 1, 2], [7, 9, 8])
    order = Order(3, 5, "policy")
    everything = list(minibatches(shards, None, 2, 6, order))
    mine = list(minibatches(shards, own, 2, 6, order))
    for all_parts, parts in zip(everything, mine, strict=True):
        assert [p.tolist() for p in all_parts[own.start : own.stop]] == [p.tolist() for p in parts]
