"""Where successes are rare: what a window says of each task, and a policy that moves no further than that allows."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from builders.rollouts import column, flags, window
from builders.short_episodes import (
    CLOSE,
    FAST,
    OPEN,
    SEPARATE,
    SHARED,
    TURNS,
    credit,
    episodes,
    learner,
    played,
)  # fmt: skip
from vla_rl.algorithms.minibatches import Order
from vla_rl.algorithms.signal import signal_of
from vla_rl.config import CriticConfig, PPOConfig

EPISODES = 8
MIXED = episodes([OPEN] * 4 + [CLOSE] * 4, [1, 0, 1, 0, 0, 0, 0, 0])
FAILED = episodes([CLOSE] * EPISODES, [0] * EPISODES)


def test_outcomes_that_can_be_compared_are_counted_by_task():
    signal = signal_of(MIXED, np.zeros((TURNS, EPISODES), np.float32))
    assert (signal.won.tolist(), signal.lost.tolist()) == ([2, 0], [2, 4])
    assert signal.outcomes == pytest.approx(
        2 * 2 / 4
    )  # of the second task there is nothing to compare
    assert signal.metrics()["losses/outcomes"] == pytest.approx(1.0)
    rare = episodes([OPEN] * 100, [1] + [0] * 99)
    rare = signal_of(rare, np.zeros((TURNS, 100), np.float32))
    assert rare.outcomes == pytest.approx(0.99)
    solved = signal_of(episodes([OPEN] * 9, [1] * 9), np.zeros((TURNS, 9), np.float32))
    assert (solved.outcomes, solved.is_dark) == (0.0, False)


def test_a_success_is_in_sight_where_an_episode_succeeds_or_pays():
    nothing = np.zeros((TURNS, EPISODES), np.float32)
    assert signal_of(MIXED, nothing).in_sight.tolist() == [True, False]
    assert signal_of(MIXED, nothing).metrics()["losses/tasks_in_sight"] == 0.5
    assert signal_of(FAILED, nothing).is_dark
    assert signal_of(FAILED, nothing).metrics()["losses/tasks_in_sight"] == 0.0
    # a potential that rises and falls again pays nothing, whatever rounding says
    potential = nothing + column(0.7, -0.6, -0.1).astype(np.float32)
    assert signal_of(FAILED, potential).is_dark
    paid = potential.copy()
    paid[0, 5] += 0.01
    assert signal_of(FAILED, paid).in_sight.tolist() == [False, True]
    lost = replace(FAILED, valid=FAILED.valid & (np.arange(EPISODES) != 5))
    assert signal_of(lost, paid).is_dark, "a turn that was lost pays nothing"


def test_an_episode_that_began_before_the_window_counts_where_it_ends():
    ends = window(2, rewards=column(1, 0), terminated=flags(1, 0), episode_ids=np.array([[4], [5]]))
    signal = signal_of(ends, np.zeros((2, 1), np.float32))
    assert (signal.won.tolist(), signal.lost.tolist()) == ([1], [0])
    assert signal.in_sight.tolist() == [True]


def test_advantages_are_whitened_within_each_task_if_asked():
    config = replace(FAST, normalize_within="task")
    rollout = replace(
        MIXED, values=np.random.default_rng(0).normal(size=MIXED.valid.shape).astype(np.float32)
    )
    batch, together = credit(rollout, config), credit(rollout, FAST)
    raw = credit(rollout, replace(FAST, normalize_advantages=False)).advantages
    task = torch.from_numpy(rollout.task_ids.reshape(-1))
    for one in (OPEN, CLOSE):
        own = batch.advantages[task == one]
        assert own.mean().item() == pytest.approx(0, abs=1e-6)
        assert own.std(correction=0).item() == pytest.approx(1, abs=1e-5)
        assert torch.equal(own.argsort(), raw[task == one].argsort())
        assert abs(together.advantages[task == one].mean().item()) > 0.01


@pytest.mark.parametrize("within", ["window", "task"])
def test_advantages_that_hardly_differ_are_not_blown_up(within: Any):
    small = 0.01 * np.random.default_rng(0).normal(size=FAILED.valid.shape).astype(np.float32)
    rollout = replace(FAILED, values=small)
    config = replace(FAST, normalize_within=within, normalize_floor=0.2)
    raw = credit(rollout, replace(FAST, normalize_advantages=False)).advantages
    held = credit(rollout, config).advantages
    torch.testing.assert_close(held, (raw - raw.mean()) / 0.2)
    assert credit(rollout, replace(FAST, normalize_within=within)).advantages.std() > 0.9
    # what differs by more than the floor is whitened as ever
    large = credit(MIXED, replace(config, normalize_floor=1e-3)).advantages
    torch.testing.assert_close(
        large, credit(MIXED, replace(config, normalize_floor=0.0)).advantages
    )


def gradients_of(rows: torch.Tensor, config: PPOConfig) -> list[torch.Tensor]:
    practice, policy = learner(config)
    batch = credit(played(policy, MIXED), config)
    practice.policy.backward(batch, [rows])
    return [p.grad for p in policy.policy_parameters() if p.grad is not None]


def test_turns_of_a_task_without_a_success_in_sight_have_no_gradient():
    close = torch.from_numpy(np.flatnonzero(MIXED.task_ids.reshape(-1) == CLOSE))
    waits = replace(FAST, wait_for_success=True)
    assert all(float(g.abs().max()) == 0 for g in gradients_of(close, waits))
    assert max(float(g.abs().max()) for g in gradients_of(close, FAST)) > 1e-4
    opened = torch.from_numpy(np.flatnonzero(MIXED.task_ids.reshape(-1) == OPEN))
    assert max(float(g.abs().max()) for g in gradients_of(opened, waits)) > 1e-4


def test_turns_that_wait_do_not_whiten_the_others():
    waits = replace(FAST, wait_for_success=True)
    rng = np.random.default_rng(0)
    values = rng.normal(size=MIXED.valid.shape).astype(np.float32)
    task = torch.from_numpy(MIXED.task_ids.reshape(-1))
    own = credit(replace(MIXED, values=values), waits).advantages
    assert torch.equal(own[task == CLOSE], torch.zeros(12))
    assert own[task == OPEN].mean().item() == pytest.approx(0, abs=1e-6)
    assert own[task == OPEN].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    plain = replace(waits, normalize_advantages=False)
    assert torch.equal(
        credit(replace(MIXED, values=values), plain).advantages[task == CLOSE], torch.zeros(12)
    )


@pytest.mark.parametrize("critic", [SHARED, SEPARATE], ids=["shared", "separate"])
def test_a_window_without_a_success_in_sight_leaves_what_the_policy_says_as_it_was(
    critic: CriticConfig,
):
    """Also where Adam has a momentum of windows before, which a step on zero gradients would follow."""
    for waits in (True, False):
        config = replace(FAST, wait_for_success=waits)
        practice, policy = learner(config, critic)
        practice.update(credit(played(policy, MIXED), config), 0, 0.0)
        window = played(policy, FAILED)
        said = [p.detach().clone() for p in policy.policy_parameters()]
        values = policy.values(window.flat_observation()).detach().clone()
        metrics = practice.update(credit(window, config), 1, 0.0)
        unmoved = all(
            torch.equal(a, b) for a, b in zip(said, policy.policy_parameters(), strict=True)
        )
        assert unmoved is waits
        assert ("losses/policy_steps" in metrics) is not waits
        assert not torch.equal(values, policy.values(window.flat_observation())), (
            "the critic learns on"
        )


def test_successes_are_imitated_as_before_where_others_wait():
    silent = replace(FAST, self_imitation_coef=1.0, wait_for_success=True)
    practice, policy = learner(silent)
    batch = credit(played(policy, MIXED), silent)
    nothing = replace(batch, advantages=torch.zeros_like(batch.advantages))
    won = batch.succeeded.nonzero().squeeze(-1)
    assert practice.policy.backward(nothing, [won])["losses/imitation"] > 0
    assert (
        max(float(p.grad.abs().max()) for p in policy.policy_parameters() if p.grad is not None) > 0
    )


def test_the_learning_rate_follows_the_outcomes_that_can_be_compared():
    plain, policy = learner(FAST)
    window = played(policy, MIXED)
    whole = plain.update(credit(window, FAST), 0, 0.0)["losses/learning_rate"]
    for half, share in ((1.0, 0.5), (3.0, 0.25)):  # of the window one outcome can be compared
        config = replace(FAST, half_rate_outcomes=half)
        metrics = learner(config)[0].update(credit(window, config), 0, 0.0)
        assert metrics["losses/rate_scale"] == pytest.approx(share)
        assert metrics["losses/learning_rate"] == pytest.approx(share * whole)


def test_a_slower_step_is_a_smaller_one_and_without_outcomes_there_is_none():
    """Adam would make a step of the same size of a loss that is ten times smaller."""
    moved = []
    for half in (0.0, 9.0):
        config = replace(FAST, half_rate_outcomes=half, epochs=1, minibatch=1000)
        practice, policy = learner(config)
        before = copy.deepcopy([*policy.policy_parameters()])
        practice.update(credit(played(policy, MIXED), config), 0, 0.0)
        pairs = zip(before, policy.policy_parameters(), strict=True)
        moved.append(max(float((a - b).detach().abs().max()) for a, b in pairs))
    assert moved[1] == pytest.approx(0.1 * moved[0], rel=1e-2)
    config = replace(FAST, half_rate_outcomes=9.0)
    practice, policy = learner(config)
    metrics = practice.update(credit(played(policy, FAILED), config), 0, 0.0)
    assert metrics["losses/rate_scale"] == 0.0
    assert not practice.policy.optimizer.state


def test_a_batch_of_which_nothing_was_counted_is_learned_at_the_full_rate():
    config = replace(FAST, half_rate_outcomes=9.0, wait_for_success=True)
    practice, policy = learner(config)
    batch = replace(credit(played(policy, FAILED), config), signal=None)
    assert practice.update(batch, 0, 0.0)["losses/policy_steps"] > 0


def test_every_window_is_gone_through_as_often_whatever_the_scale():
    """The order of minibatches is the window's, so that a scale changes sizes of steps and nothing else."""
    config = replace(FAST, half_rate_outcomes=3.0)
    practice, policy = learner(config)
    batch = credit(played(policy, MIXED), config)
    steps = practice.policy.improve(batch, Order(0, 0, "policy"), 0.0, 0.5)["losses/policy_steps"]
    assert steps == 2 * (TURNS * EPISODES // 8)
