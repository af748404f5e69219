"""Credit assignment on hand-made windows whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.rollouts import column, flags, window
from vla_rl.algorithms.advantages import compute_advantages
from vla_rl.config import PPOConfig
from vla_rl.types import Rollout

PLAIN = PPOConfig(
    gamma=0.9,
    gae_lambda=0.5,
    value_lambda=1.0,
    time_limit_is_terminal=False,
    normalize_advantages=False,
)


def credit(rollout: Rollout, config: PPOConfig = PLAIN):
    return compute_advantages(rollout, np.zeros_like(rollout.rewards), config)


def test_success_ends_the_return_and_the_next_episode_does_not_leak_into_it():
    rollout = window(
        3, rewards=column(0, 1, 0), values=column(0.5, 0.25, 8), terminated=flags(0, 1, 0),
        next_values=np.array([8], np.float32),
    )  # fmt: skip
    batch = credit(rollout)
    # turn 1: 1 - 0.25 = 0.75;  turn 0: 0.9 * 0.25 - 0.5 + 0.9 * 0.5 * 0.75 = 0.0625
    torch.testing.assert_close(batch.advantages, torch.tensor([0.0625, 0.75, 0.9 * 8 - 8]))
    # Monte-Carlo targets: 0.9 * 1, 1, 0.9 * 8
    torch.testing.assert_close(batch.value_targets, torch.tensor([0.9, 1.0, 7.2]))


def test_time_limit_bootstraps_from_the_true_final_observation():
    cut = window(
        2,
        values=column(0, 5),
        truncated=flags(1, 0),
        final_values=column(2, 0),
        next_values=np.array([5], np.float32),
    )
    torch.testing.assert_close(credit(cut).value_targets, torch.tensor([0.9 * 2, 0.9 * 5]))


def test_terminal_time_limit_is_worth_nothing_afterwards():
    cut = window(
        1, truncated=flags(1), final_values=column(2), next_values=np.array([5], np.float32)
    )
    config = replace(PLAIN, time_limit_is_terminal=True)
    torch.testing.assert_close(credit(cut, config).value_targets, torch.tensor([0.0]))


def test_window_edge_bootstraps_from_the_following_observation():
    rollout = window(1, values=column(1), next_values=np.array([3], np.float32))
    batch = credit(rollout)
    torch.testing.assert_close(batch.advantages, torch.tensor([0.9 * 3 - 1]))


def test_dense_reward_is_added():
    rollout = window(1, rewards=column(1), terminated=flags(1))
    batch = compute_advantages(rollout, np.full((1, 1), 0.5, np.float32), PLAIN)
    torch.testing.assert_close(batch.value_targets, torch.tensor([1.5]))


def test_dense_rewards_outside_the_return_reach_the_advantages_alone():
    rollout = window(
        3, rewards=column(0, 1, 0), values=column(0.5, 0.25, 8), terminated=flags(0, 1, 0),
        next_values=np.array([8], np.float32),
    )  # fmt: skip
    dense = column(0.1, 0.3, 0.7)
    batch = compute_advantages(rollout, dense, PLAIN, in_return=False)
    sparse = credit(rollout)
    torch.testing.assert_close(batch.value_targets, sparse.value_targets)
    # the trace ends with the episode: turn 0 gets 0.1 + 0.9 * 0.5 * 0.3
    torch.testing.assert_close(
        batch.advantages - sparse.advantages, torch.tensor([0.235, 0.3, 0.7])
    )


def test_turn_lost_to_a_crash_is_left_out_and_the_one_before_bootstraps():
    # turn 1 has no outcome; turn 2 is the retried episode and succeeds
    rollout = window(
        3,
        rewards=column(0, 0, 1),
        values=column(0, 4, 0),
        terminated=flags(0, 0, 1),
        valid=flags(1, 0, 1),
    )
    batch = credit(rollout)
    assert batch.tokens.tolist() == [[0, 1], [4, 5]]
    torch.testing.assert_close(batch.value_targets, torch.tensor([0.9 * 4, 1.0]))


def test_advantages_are_whitened_over_the_whole_window_only_if_asked():
    rng = np.random.default_rng(0)
    rollout = window(6, 4, values=rng.normal(size=(6, 4)).astype(np.float32))
    whitened = credit(rollout, replace(PLAIN, normalize_advantages=True)).advantages
    raw = credit(rollout).advantages
    assert whitened.mean().item() == pytest.approx(0, abs=1e-6)
    assert whitened.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(whitened.argsort(), raw.argsort())


def test_flat_order_is_turn_by_turn():
    rollout = window(
        2, 3, task_ids=np.zeros((2, 3), np.int64), succeeded=np.array([[0, 1, 0], [0, 0, 1]], bool)
    )
    batch = credit(rollout)
    assert batch.tokens[:, 0].tolist() == [0, 2, 4, 6, 8, 10]
    assert batch.succeeded.tolist() == [False, True, False, False, False, True]
