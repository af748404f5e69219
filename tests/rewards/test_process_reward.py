"""The process reward in the loop: shaping that pays progress alone, bounds that hold, and the simulator as a scorer."""

from __future__ import annotations

import json
from dataclasses import replace

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from builders import rollouts
from vla_rl.config import ConfigError, PPOConfig, ProcessRewardConfig, TrainConfig
from vla_rl.rewards import JudgeScorer, ShapedReward, SimulatorScorer
from vla_rl.rewards.shaping import RunningScale, potential_shaping, progress_rewards
from vla_rl.types import Rollout


class BrightnessJudge:
    """Known answers: the log-odds of a picture is its first pixel's red value minus 100."""

    sees_actions = False
    calls = 0

    def log_odds(self, images, instructions, actions=None):
        assert len(images) == len(instructions)
        self.calls += 1
        return images[:, 0, 0, 0].astype(np.float32) - 100


def window(brightness: np.ndarray, following: list[int], **changes: np.ndarray) -> Rollout:
    """A window in which the red value of each turn's picture is given, (M, N)."""
    blank = rollouts.window(*brightness.shape)
    images, after = blank.images.copy(), blank.next_images.copy()
    images[:, :, 0, 0, 0] = brightness
    after[:, 0, 0, 0] = following
    return replace(blank, images=images, next_images=after, **changes)


def reward(
    judge=None, horizon: int = 4, gamma: float = 0.5, form="potential", **config
) -> ShapedReward:
    def never(tokens):
        raise AssertionError("this judge sees no actions")

    return ShapedReward(
        JudgeScorer(judge or BrightnessJudge(), "folder", never),
        ProcessRewardConfig(judge="folder", form=form, **config),
        gamma=gamma,
        horizon=horizon,
    )


def flags(*rows: list[int]) -> np.ndarray:
    return np.array(rows, bool)


LOW, HALF, HIGH = 0, 100, 200  # probabilities 0, 1/2 and 1


def test_progress_is_paid_and_taken_back() -> None:
    rollout = window(np.array([[LOW], [HALF], [HIGH], [HALF]]), [HALF])
    dense = reward(gamma=0.5, weight=1.0, limit=0.9).score(rollout)
    # 0.5 p(next) - p(now)
    assert dense[:, 0].tolist() == pytest.approx([0.25, 0.0, -0.75, -0.25], abs=1e-6)


def test_nothing_follows_an_end() -> None:
    rollout = window(np.array([[HALF], [HIGH]]), [HIGH], terminated=flags([1], [0]))
    dense = reward(gamma=0.5, weight=0.8, limit=0.9).score(rollout)
    assert dense[:, 0].tolist() == pytest.approx([-0.4, 0.4 - 0.8])


@given(
    hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(0, 1, width=32)),
    st.floats(0.1, 1.0),
)
def test_over_an_episode_shaping_pays_only_where_it_began(potentials, gamma) -> None:
    """Ng, Harada, Russell 1999: the discounted sum is -Phi(o_0), whatever was done."""
    turns = len(potentials)
    ended = np.zeros((turns, 1), bool)
    ended[-1] = True
    shaped = potential_shaping(potentials[:, None], np.ones(1, np.float32), ended, gamma)
    total = float(gamma ** np.arange(turns) @ shaped[:, 0].astype(np.float64))
    assert total == pytest.approx(-potentials[0], abs=1e-5)


def test_windows_cut_shaping_nowhere() -> None:
    """Two windows give what one gives."""
    brightness = np.array([[90], [101], [95], [104], [99], [100]])
    whole = reward(gamma=0.9).score(window(brightness, [97]))
    model = reward(gamma=0.9)
    parts = [
        model.score(window(brightness[:3], [104])),
        model.score(window(brightness[3:], [97])),
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-7)


def test_progress_ends_at_one_with_success_and_nowhere_with_a_time_limit() -> None:
    """Three episodes in a column each: one goes on, one succeeds, one is cut."""
    rollout = window(
        np.array([[LOW, LOW, HALF], [HALF, HALF, HIGH]]),
        [HIGH, LOW, LOW],
        terminated=flags([0, 0, 0], [0, 1, 0]),
        truncated=flags([0, 0, 0], [0, 0, 1]),
    )
    model = reward(form="progress", weight=0.8, limit=0.9)
    dense = model.score(rollout)
    np.testing.assert_allclose(dense, [[0.4, 0.4, 0.4], [0.4, 0.4, 0.0]], atol=1e-6)
    assert not model.in_return
    assert reward().in_return
    assert reward(form="additive").in_return


@given(hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(0, 1, width=32)), st.booleans())
def test_progress_of_an_episode_is_where_it_ended_less_where_it_began(potentials, success) -> None:
    turns = len(potentials)
    last = np.zeros((turns, 1), bool)
    last[-1] = True
    rewards = progress_rewards(
        potentials[:, None], np.full(1, 0.3, np.float32), last & success, last & (not success)
    )
    expected = (1.0 if success else potentials[-1]) - potentials[0]
    assert rewards.sum(dtype=np.float64) == pytest.approx(expected, abs=1e-5)


def test_the_additive_form_pays_each_turn_its_share() -> None:
    rollout = window(np.array([[HALF, HIGH], [LOW, HIGH]]), [0, 0])
    dense = reward(form="additive", weight=0.4, horizon=4).score(rollout)
    np.testing.assert_allclose(dense, [[0.05, 0.1], [0.0, 0.1]], atol=1e-7)


@given(
    hnp.arrays(np.uint8, (12, 2), elements=st.integers(90, 110)),
    hnp.arrays(np.bool_, (12, 2)),
    st.sampled_from(["potential", "additive", "progress"]),
    st.floats(0, 3),
    st.floats(0, 0.9),
    st.booleans(),
)
def test_an_episodes_dense_rewards_stay_below_success(
    brightness, ended, form, weight, limit, normalize
) -> None:
    rollout = window(brightness, [100, 100], truncated=ended)
    model = reward(form=form, weight=weight, limit=limit, normalize=normalize, horizon=3)
    dense = model.score(rollout)
    for slot in range(2):
        running = 0.0
        for turn in range(12):
            running += float(dense[turn, slot])
            assert abs(running) <= limit + 1e-5
            running = 0.0 if ended[turn, slot] else running


def test_turns_without_an_outcome_are_paid_nothing() -> None:
    rollout = window(np.array([[HIGH], [HIGH], [HIGH]]), [HIGH], valid=flags([1], [0], [1]))
    dense = reward(form="additive", weight=0.4, horizon=4).score(rollout)
    assert dense[:, 0].tolist() == pytest.approx([0.1, 0.0, 0.1])


def test_one_call_scores_a_whole_window() -> None:
    judge = BrightnessJudge()
    reward(judge, form="additive").score(window(np.full((6, 5), HALF), [0] * 5))
    assert judge.calls == 1


def test_what_a_resumed_run_needs_is_saved() -> None:
    """The episode's budget and the scale cross a save; without them the second window would differ."""
    first = window(np.full((2, 1), 101), [101])
    second = window(np.full((2, 1), 102), [101])
    settings = {"form": "additive", "weight": 2.0, "limit": 0.9, "horizon": 2, "normalize": True}
    model = reward(**settings)
    model.score(first)
    saved = model.state_dict()
    expected = model.score(second)
    resumed = reward(**settings)
    resumed.load_state_dict(saved)
    np.testing.assert_array_equal(resumed.score(second), expected)
    assert not np.allclose(reward(**settings).score(second), expected)


def test_the_scale_makes_the_judges_units_irrelevant() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    valid = np.ones((5, 3), bool)
    small, large = RunningScale(), RunningScale()
    np.testing.assert_allclose(
        small.normalised(values, valid), large.normalised(100 * values, valid), rtol=1e-5
    )
    assert np.sqrt(np.mean(np.square(small.normalised(values, valid)))) == pytest.approx(1.0)


def simulated(rewards: list[list[float]], **arrays: np.ndarray) -> Rollout:
    after = np.array(rewards, np.float32)
    return window(
        np.zeros(after.shape, np.uint8), [0] * after.shape[1], simulator_rewards=after, **arrays
    )


def test_the_simulator_speaks_of_what_follows_a_turn() -> None:
    """In a column each: an episode that goes on, one that ends in the middle, one with an answer missing."""
    rollout = simulated(
        [[0.2, 0.3, 0.1], [0.5, 0.9, np.nan], [0.4, 0.6, 0.7]],
        truncated=flags([0, 0, 0], [0, 1, 0], [0, 0, 0]),
    )
    scorer = SimulatorScorer()
    before = scorer.scores(rollout)
    np.testing.assert_allclose(before, [[0.2, 0.3, 0.1], [0.2, 0.3, 0.1], [0.5, 0.6, 0.1]])
    np.testing.assert_allclose(scorer.following(rollout), [0.4, 0.6, 0.7])
    # the next window goes on where this one stopped, in another process too
    again = SimulatorScorer()
    again.load_state_dict(json.loads(json.dumps(scorer.state_dict())))
    following = simulated([[0.8, 0.8, np.nan]])
    for resumed in (scorer, again):
        np.testing.assert_allclose(resumed.scores(following), [[0.4, 0.6, 0.7]])


def test_what_the_simulator_says_after_an_end_is_not_the_next_episodes() -> None:
    scorer = SimulatorScorer()
    scorer.scores(simulated([[0.9]], terminated=flags([1])))
    again = SimulatorScorer()
    again.load_state_dict(json.loads(json.dumps(scorer.state_dict())))
    np.testing.assert_allclose(again.scores(simulated([[0.1]])), [[0.1]])


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match=r"reward.limit must lie in \[0, 1\), got 1"):
        ProcessRewardConfig(limit=1.0)
    with pytest.raises(ConfigError, match=r"potential needs ppo.time_limit_is_terminal"):
        TrainConfig(
            ppo=PPOConfig(time_limit_is_terminal=False),
            reward=ProcessRewardConfig(judge="x", form="potential"),
        )
    with pytest.raises(ConfigError, match="the simulator needs no teaching: leave it at 0"):
        ProcessRewardConfig(judge="simulator", refresh_every=6)
