"""What no reward model can bring about: that waiting pays, or that another policy is the best."""

from __future__ import annotations

import logging
from dataclasses import replace

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given
from toy_rollouts import HALF, HIGH, LOW, Scores, flags, reward, window

from vla_rl.config import ProcessRewardConfig
from vla_rl.rewards import ShapedReward
from vla_rl.rewards.shaping import additive_rewards, annuity, progress_rewards

# -- additive --------------------------------------------------------------------------------------


def test_the_additive_form_pays_each_turn_its_share() -> None:
    rollout = window(np.array([[HALF, HIGH], [LOW, HIGH]]), [0, 0])
    dense = reward(form="additive", weight=0.4, horizon=4).score(rollout)
    np.testing.assert_allclose(dense, [[0.05, 0.1], [0.0, 0.1]], atol=1e-7)


def test_a_success_is_paid_for_the_turns_that_were_left_as_if_they_looked_best() -> None:
    """Horizon 4, discount 1/2, weight 0.4. Successes in the second, the last and the first turn of an episode."""
    rollout = window(
        np.array([[HALF, HALF, LOW], [LOW, LOW, LOW]]),
        [0, 0, 0],
        terminated=flags([0, 0, 1], [1, 1, 0]),
        time_fraction=np.array([[0, 0.5, 0], [0.25, 0.75, 0]], np.float32),
    )
    dense = reward(form="additive", weight=0.4, horizon=4, gamma=0.5).score(rollout)
    # the last column: its second episode has just begun
    expected = [[0.05, 0.05, 0.1 * 1.875], [0.1 * 1.75, 0.1, 0.0]]
    np.testing.assert_allclose(dense, expected, atol=1e-7)


def test_paying_by_the_turn_alone_would_reward_waiting() -> None:
    """What the form guards against: 0.3 / 15 a turn is more than the 1 % that a success loses by waiting."""
    assert 0.3 / 15 + 0.99 > 1
    horizon, gamma, weight = 15, 0.99, 0.3
    now = 1 + weight * float(annuity(gamma, np.array(15.0))) / horizon
    later = weight / horizon + gamma * (
        1 + weight * float(annuity(gamma, np.array(14.0))) / horizon
    )
    assert now - later == pytest.approx(1 - gamma)


def discounted(rewards: np.ndarray, gamma: float) -> float:
    return float(gamma ** np.arange(len(rewards)) @ rewards.astype(np.float64))


@given(
    hnp.arrays(np.float32, 12, elements=st.floats(0, 1, width=32)),
    st.integers(0, 10),
    st.integers(1, 12),
    st.sampled_from([0.5, 0.9, 0.99, 0.999, 1.0]),
    st.floats(0, 1),
)
@example(np.ones(12, np.float32), 0, 1, 0.99, 0.3)
@example(np.ones(12, np.float32), 3, 9, 0.999, 0.3)
def test_finishing_is_never_worse_than_any_delay(
    scores: np.ndarray, finish: int, delay: int, gamma: float, weight: float
) -> None:
    """From the turn that could have succeeded on: whatever the scores are, and whether or not it succeeds later."""
    horizon = 12
    turns = np.arange(horizon)

    def worth(success: int) -> float:
        """Of the way that succeeds in turn `success`, or not at all beyond the horizon; from turn `finish` on."""
        succeeded = turns == success
        dense = additive_rewards(
            scores[:, None], succeeded[:, None], turns[:, None], gamma, horizon, endless=False
        )
        total = (weight * dense[:, 0] + succeeded)[finish : min(success, horizon - 1) + 1]
        return discounted(total, gamma)

    assert worth(finish) >= worth(finish + delay) - 1e-6


@given(st.floats(0.5, 0.995), st.integers(2, 300), st.floats(0, 3), st.floats(0.01, 0.9))
def test_where_time_limits_bootstrap_neither_hovering_nor_finishing_passes_the_limit(
    gamma: float, horizon: int, weight: float, limit: float
) -> None:
    """Hovering for ever at the best score is worth w / H / (1 - gamma): it stays below finishing now, and the limit."""
    model = reward(
        form="additive", weight=weight, limit=limit, gamma=gamma, horizon=horizon, terminal=False
    )
    rollout = window(
        np.array([[250], [250]]),
        [0],
        terminated=flags([0], [1]),
        time_fraction=np.array([[0], [1 / horizon]], np.float32),
    )
    turn, success = model.score(rollout)[:, 0].tolist()
    hovering = turn / (1 - gamma)
    assert hovering <= limit + 1e-5
    assert success == pytest.approx(hovering, rel=1e-4, abs=1e-6)
    assert (horizon - 1) * turn + success <= limit + 1e-5


def test_a_weight_that_could_pass_the_limit_is_lowered_and_said_to_be(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        low = reward(form="additive", weight=0.8, limit=0.5)
        endless = reward(
            form="additive", weight=0.3, limit=0.5, horizon=15, gamma=0.99, terminal=False
        )
        none = reward(form="additive", weight=0.3, gamma=1.0, terminal=False)
        reward(form="potential", weight=0.8)
        reward(form="additive", weight=0.3, limit=0.5)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "reward.weight is 0.5 instead of 0.8", "reward.weight is 0.0658 instead of 0.3",
        "reward.weight is 0 instead of 0.3",
    ]  # fmt: skip
    best = window(np.full((1, 1), 250), [0])
    assert low.score(best)[0, 0] == pytest.approx(0.5 / 4)
    assert endless.score(best)[0, 0] == pytest.approx(0.5 / (14 / 15 + 100 / 15) / 15)
    assert none.score(replace(best, terminated=flags([1])))[0, 0] == 0


@given(
    hnp.arrays(np.uint8, (12, 2), elements=st.integers(90, 110)),
    st.lists(st.integers(1, 4), min_size=12, max_size=12),
    st.booleans(),
    st.floats(0, 3),
    st.floats(0, 0.9),
    st.booleans(),
)
def test_an_episodes_additive_rewards_never_pass_the_limit(
    brightness, lengths, success, weight, limit, normalize
) -> None:
    """Episodes of up to the horizon, one after the other."""
    last = np.zeros((12, 2), bool)
    last[np.cumsum(lengths)[np.cumsum(lengths) <= 12] - 1] = True
    played = np.zeros((12, 2), np.float32)
    for turn in range(1, 12):
        played[turn] = np.where(last[turn - 1], 0, played[turn - 1] + 1)
    rollout = window(
        brightness, [100, 100], terminated=last & success, truncated=last & (not success),
        time_fraction=played / 4,
    )  # fmt: skip
    dense = reward(
        form="additive", weight=weight, limit=limit, normalize=normalize, horizon=4
    ).score(rollout)
    assert dense.min() >= 0
    for column in range(2):
        for episode in np.split(dense[:, column], np.flatnonzero(last[:, column]) + 1):
            assert episode.sum() <= limit + 1e-5


# -- the best policy stays the best ----------------------------------------------------------------


@given(st.integers(0, 2**32), st.sampled_from([0.3, 1.0, 3.0]), st.booleans())
def test_a_potential_leaves_the_order_of_policies_as_it_is(
    seed: int, weight: float, normalize: bool
) -> None:
    """220 turns at 0.99, any weight, windows of 50 turns, and another reward model from the third window on.

    Eight ways to act from one beginning, most of which end at some time: each return changes by the same -Phi(o_0).
    """
    rng = np.random.default_rng(seed)
    horizon, ways, gamma = 220, 8, 0.99
    scores = rng.random((250, ways)).astype(np.float32)
    scores[0] = rng.random()
    ends = rng.integers(10, horizon, ways)
    turns = np.arange(250)[:, None]
    terminated = (turns == ends) & (np.arange(ways) < 5)
    truncated = (turns == ends) & (np.arange(ways) >= 5)
    given_scores = Scores(scores, rng.random((250, ways)).astype(np.float32), changed_from=100)
    model = ShapedReward(
        given_scores,
        ProcessRewardConfig(model="x", form="potential", weight=weight, normalize=normalize),
        gamma=gamma,
        horizon=horizon,
    )
    dense = np.concatenate(
        [
            model.score(given_scores.window(start, start + 50, terminated, truncated))
            for start in range(0, 250, 50)
        ]
    )
    shaped = [discounted(dense[: end + 1, way], gamma) for way, end in enumerate(ends)]
    first = weight * scores[0, 0] / (np.sqrt(np.mean(np.square(scores[:50]))) if normalize else 1)
    np.testing.assert_allclose(shaped, np.full(ways, -first), atol=2e-4 * max(1, weight))


@given(
    hnp.arrays(np.float32, 30, elements=st.floats(0, 1, width=32)),
    st.integers(0, 20),
    st.integers(1, 9),
    st.floats(0.1, 1.0),
    st.floats(0, 3),
)
def test_progress_pays_finishing_at_least_as_much_as_any_delay(
    scores: np.ndarray, finish: int, delay: int, trace: float, weight: float
) -> None:
    """The advantage of the turn that could succeed, by its trace: gamma times lambda."""

    def advantage(success: int) -> float:
        turns = np.arange(30)[:, None]
        rewards = progress_rewards(
            weight * scores[:, None], np.zeros(1, np.float32), turns == success, turns == 29, weight
        )
        return discounted(rewards[finish : success + 1, 0], trace)

    assert advantage(finish) >= advantage(finish + delay) - 1e-5 * max(1, weight)


def test_a_long_episode_of_progress_is_not_clipped() -> None:
    """Up to 1, down and up again with weight 1: all of it is paid."""
    rollout = window(
        np.array([[LOW], [HIGH], [LOW], [HIGH]]), [HIGH], terminated=flags([0], [0], [0], [1])
    )
    dense = reward(form="progress", weight=1.0, limit=0.1).score(rollout)
    np.testing.assert_allclose(dense[:, 0], [1, -1, 1, 0], atol=1e-6)
