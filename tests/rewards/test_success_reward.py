"""Dense rewards can never be worth as much as success."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from builders.rollouts import column, window
from vla_rl.config import ConfigError
from vla_rl.rewards import SUCCESS_REWARD, RewardModel, SuccessReward, bound_dense_rewards

NO_TOTAL = np.zeros(1, dtype=np.float32)


def test_success_reward_adds_nothing():
    model: RewardModel = SuccessReward()
    rollout = window(3, 2, rewards=np.ones((3, 2), np.float32))
    dense = model.score(rollout)
    assert dense.shape == rollout.rewards.shape
    assert dense.dtype == np.float32
    assert not dense.any()


def test_rewards_pass_until_the_budget_is_spent():
    never = np.zeros((4, 1), dtype=bool)
    bounded, running = bound_dense_rewards(column(0.25, 0.125, 0.5, -0.25), never, NO_TOTAL, 0.5)
    assert bounded[:, 0].tolist() == [0.25, 0.125, 0.125, -0.25]
    assert running.tolist() == [0.25]


def test_the_budget_is_per_episode_and_crosses_window_edges():
    ended = np.array([[False], [True], [False]])
    bounded, running = bound_dense_rewards(column(0.5, 0.5, 0.5), ended, NO_TOTAL, 0.75)
    assert bounded[:, 0].tolist() == [0.5, 0.25, 0.5]
    bounded, running = bound_dense_rewards(column(0.5), np.array([[True]]), running, 0.75)
    assert bounded.item() == 0.25
    assert running.item() == 0.0


def test_the_defect_seen_elsewhere():
    """0.1 a turn over 200 turns at gamma 0.99 was worth 8.7."""
    dense = np.full((200, 1), 0.1, dtype=np.float32)
    weights = 0.99 ** np.arange(200)
    assert weights @ dense[:, 0] == pytest.approx(8.66, abs=0.01)
    bounded, _ = bound_dense_rewards(dense, np.zeros((200, 1), dtype=bool), NO_TOTAL)
    assert weights @ bounded[:, 0] <= 0.5


@given(
    st.integers(0, 2**32),
    st.floats(0, 0.99),
    st.floats(0, 1),
    st.integers(1, 30),
    st.floats(0.01, 100),
)
def test_no_episode_reaches_the_reward_of_success(
    seed: int, limit: float, gamma: float, edge: int, scale: float
):
    """Sums and discounted sums, over random signed rewards and ends, in two windows as in one."""
    rng = np.random.default_rng(seed)
    dense = (scale * rng.standard_normal((31, 2))).astype(np.float32)
    ended = rng.random((31, 2)) < 0.15
    zeros = np.zeros(2, dtype=np.float32)
    whole, total = bound_dense_rewards(dense, ended, zeros, limit)
    first, carried = bound_dense_rewards(dense[:edge], ended[:edge], zeros, limit)
    second, total_apart = bound_dense_rewards(dense[edge:], ended[edge:], carried, limit)
    np.testing.assert_allclose(np.concatenate([first, second]), whole, atol=1e-4 * max(1, scale))
    np.testing.assert_allclose(total_apart, total, atol=1e-4 * max(1, scale))
    for n in range(2):
        for episode in np.split(whole[:, n], np.flatnonzero(ended[:, n]) + 1):
            for discount in (1.0, gamma):
                worth = abs(discount ** np.arange(len(episode)) @ episode)
                assert worth <= limit + 1e-5
                assert worth < SUCCESS_REWARD


def test_bad_limits_and_rewards_are_refused():
    one = np.zeros((1, 1), dtype=bool)
    for limit in (1.0, -0.1):
        with pytest.raises(ConfigError, match="below the reward of success"):
            bound_dense_rewards(column(0.1), one, NO_TOTAL, limit)
    with pytest.raises(ValueError, match="1 rewards that are not finite"):
        bound_dense_rewards(column(np.nan), one, NO_TOTAL)
