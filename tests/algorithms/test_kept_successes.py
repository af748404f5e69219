"""Successes kept over many windows: what each weighs, how many there are, and that a run goes on with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.short_episodes import (
    CLOSE,
    FAST,
    OPEN,
    TURNS,
    credit,
    episodes,
    learner,
    played,
)
from vla_rl.algorithms.kept_successes import KeptSuccesses
from vla_rl.algorithms.ppo import PPO
from vla_rl.config import PPOConfig
from vla_rl.policies import OpenVLAPolicy
from vla_rl.runtime.trees import join_arrays, split_arrays

KEEPS = replace(FAST, kept_successes=8, kept_half_life=1.0)
TASKS = [OPEN, OPEN, CLOSE, CLOSE]


def kept_of(practice: PPO) -> KeptSuccesses:
    assert practice.policy.kept is not None
    return practice.policy.kept


def window(practice: PPO, policy: OpenVLAPolicy, iteration: int, *won: int):
    """A window in which each task plays two episodes."""
    rollout = played(policy, episodes(TASKS, list(won), seed=iteration))
    return credit(rollout, practice.config)


def weights_by_task(practice: PPO) -> list[list[float]]:
    """Of each kept episode, by task, the older first."""
    kept = kept_of(practice)
    weights = iter(kept._weights())
    return [[next(weights) for _ in kept.episodes.get(task, ())] for task in (OPEN, CLOSE)]


def test_a_kept_episode_weighs_by_its_age_and_its_tasks_failures():
    practice, policy = learner(KEEPS)
    kept = kept_of(practice)
    kept.add(window(practice, policy, 0, 1, 0, 0, 0), 0)
    # half of the first task's episodes failed, and of two tasks one has something to imitate
    assert weights_by_task(practice) == [[pytest.approx(1 / 4)], []]
    kept.add(window(practice, policy, 1, 1, 1, 1, 0), 1)
    # outcomes halve in a window: of the first task 2.5 were won and 0.5 lost, of the second 1 and 2
    first, second = weights_by_task(practice)
    assert first == pytest.approx([1 / 12 * q for q in (0.2, 0.4, 0.4)])
    assert second == pytest.approx([1 / 3])
    kept.add(window(practice, policy, 2, 0, 0, 0, 0), 2)
    # a window without a success later all weigh half as much, but for what is known of failures
    first, second = weights_by_task(practice)
    failing = (0.25 + 2) / (1.25 + 0.25 + 2), (1 + 2) / (0.5 + 1 + 2)
    assert sum(first) == pytest.approx(0.5 * 0.5 * failing[0])
    assert sum(second) == pytest.approx(0.5 * 0.5 * failing[1])
    turns = kept.turns()
    assert turns is not None
    assert turns.weights.mean().item() == pytest.approx(sum(first) + sum(second))
    assert kept.metrics() == {"kept/episodes": 4.0, "kept/weight": pytest.approx(sum(first + second))}  # fmt: skip


def test_a_task_that_is_solved_is_not_imitated():
    practice, policy = learner(KEEPS)
    kept_of(practice).add(window(practice, policy, 0, 1, 1, 1, 0), 0)
    first, second = weights_by_task(practice)
    assert sum(first) == 0.0
    assert sum(second) == pytest.approx(1 / 4)


def test_the_last_successes_of_each_task_are_kept():
    practice, policy = learner(replace(KEEPS, kept_successes=3))
    said = []
    for iteration in range(4):
        batch = window(practice, policy, iteration, 1, 1, int(iteration == 0), 0)
        kept_of(practice).add(batch, iteration)
        said += [batch.tokens[batch.episodes == 4 * iteration + place] for place in (0, 1)]
    kept = kept_of(practice).episodes
    assert [e.iteration for e in kept[OPEN]] == [2, 3, 3]
    assert [e.iteration for e in kept[CLOSE]] == [0]
    assert all(torch.equal(e.tokens, own) for e, own in zip(kept[OPEN], said[-3:], strict=True))
    assert all(len(e.tokens) == TURNS for e in (*kept[OPEN], *kept[CLOSE]))


@pytest.mark.parametrize("keeps", [True, False])
def test_a_success_is_still_imitated_when_its_window_is_gone(keeps: bool):
    config = replace(KEEPS if keeps else FAST, self_imitation_coef=1.0, epochs=4)
    practice, policy = learner(config)
    won = window(practice, policy, 0, 1, 0, 0, 0)
    own = won.succeeded.nonzero().squeeze(-1)
    silent = torch.zeros_like(won.advantages)
    practice.update(replace(won, advantages=silent), 0, 0.0)

    def likelihood() -> float:
        with torch.no_grad():
            now = policy.evaluate(won.observe(own), won.tokens[own])
        return float(now.log_probs.sum())

    practice.policy.optimizer.state.clear()  # no momentum
    before = likelihood()
    failed = window(practice, policy, 1, 0, 0, 0, 0)
    metrics = practice.update(replace(failed, advantages=silent), 1, 0.0)
    assert (likelihood() > before + 0.1) is keeps
    assert (likelihood() == before) is not keeps
    assert (metrics.get("losses/imitation", 0.0) > 0) is keeps


def test_the_gradient_is_that_of_the_surrogate_and_of_imitation_together():
    """Once: what the window itself has won is among what is kept."""
    config = replace(KEEPS, self_imitation_coef=0.5, minibatch=1000)
    practice, policy = learner(config)
    batch = window(practice, policy, 0, 1, 0, 0, 1)
    kept_of(practice).add(batch, 0)
    turns = kept_of(practice).turns()
    assert turns is not None
    rows = torch.arange(len(batch))
    practice.policy.backward(batch, [rows])
    practice.policy._imitate(batch, turns, [torch.arange(len(turns.tokens))])
    found = [p.grad for p in policy.policy_parameters()]
    plain, _ = learner(replace(FAST, self_imitation_coef=0.0, minibatch=1000))
    plain.policy.policy = policy
    plain.policy.backward(batch, [rows])
    now = policy.evaluate(turns.observe(torch.arange(2 * TURNS)), turns.tokens)
    # both tasks failed half of the time, and each has three turns
    loss = -0.5 * 0.5 * (now.log_probs.sum(-1).mean())
    parameters = policy.policy_parameters()
    wanted = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, more, sum_of_both in zip(parameters, wanted, found, strict=True):
        if sum_of_both is None:
            assert parameter.grad is None
            assert more is None
            continue
        expected = sum(g for g in (parameter.grad, more) if g is not None)
        torch.testing.assert_close(sum_of_both, expected, rtol=1e-4, atol=1e-6)


def test_a_run_goes_on_with_what_it_has_kept_to_the_bit():
    def practised(config: PPOConfig, forget: bool) -> tuple[list[dict[str, float]], list]:
        practice, policy = learner(config)
        metrics = []
        for iteration in range(4):
            batch = window(practice, policy, iteration, *np.eye(4, dtype=int)[iteration])
            metrics.append(practice.update(batch, iteration, 0.0))
            if forget:
                saved = join_arrays(*split_arrays(practice.state_dict(), "learner"))
                practice.policy.kept = KeptSuccesses(config, practice.policy.gradients)
                practice.load_state_dict(saved)
        return metrics, [p.detach().clone() for p in policy.policy_parameters()]

    config = replace(KEEPS, critic_warmup=1, kept_successes=2)
    straight, weights = practised(config, forget=False)
    resumed, same = practised(config, forget=True)
    assert straight == resumed
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    assert straight[-1]["kept/episodes"] == 4.0


def test_a_run_of_before_that_kept_nothing_begins_to():
    practice, policy = learner(FAST)
    practice.update(window(practice, policy, 0, 1, 0, 0, 0), 0, 0.0)
    saved = practice.state_dict()
    assert "kept" not in saved
    other, _ = learner(KEEPS)
    other.load_state_dict(saved)
    assert kept_of(other).turns() is None
    assert kept_of(other).state_dict()["episodes"] == []
