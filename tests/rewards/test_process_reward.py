"""The dense reward in the loop: what the forms pay, what a stopped run needs, and the simulator as a scorer."""

from __future__ import annotations

import json

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from toy_rollouts import HALF, HIGH, LOW, BrightnessRewardModel, Scores, flags, reward, window

from vla_rl.config import ConfigError, PPOConfig, ProcessRewardConfig, TrainConfig, UserError
from vla_rl.config.serialize import from_json, to_json
from vla_rl.rewards import ShapedReward, SimulatorScorer
from vla_rl.rewards.shaping import RunningScale, potential_shaping, progress_rewards
from vla_rl.types import Rollout


def test_progress_is_paid_and_taken_back() -> None:
    rollout = window(np.array([[LOW], [HALF], [HIGH], [HALF]]), [HALF])
    dense = reward(gamma=0.5, weight=1.0).score(rollout)
    # 0.5 p(next) - p(now)
    assert dense[:, 0].tolist() == pytest.approx([0.25, 0.0, -0.75, -0.25], abs=1e-6)


def test_nothing_follows_an_end() -> None:
    rollout = window(np.array([[HALF], [HIGH]]), [HIGH], terminated=flags([1], [0]))
    dense = reward(gamma=0.5, weight=0.8).score(rollout)
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
    model = reward(form="progress", weight=0.8)
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


def test_turns_without_an_outcome_are_paid_nothing() -> None:
    rollout = window(np.array([[HIGH], [HIGH], [HIGH]]), [HIGH], valid=flags([1], [0], [1]))
    dense = reward(form="additive", weight=0.4, horizon=4).score(rollout)
    assert dense[:, 0].tolist() == pytest.approx([0.1, 0.0, 0.1])


def test_one_call_scores_a_whole_window() -> None:
    reward_model = BrightnessRewardModel()
    reward(reward_model, form="additive").score(window(np.full((6, 5), HALF), [0] * 5))
    assert reward_model.calls == 1


@pytest.mark.parametrize("form", ["additive", "potential", "progress"])
def test_what_a_resumed_run_needs_is_saved(form: str) -> None:
    """The potential at the edge and the scale cross a save; without them the second window would differ."""
    first = window(np.full((2, 1), 101), [100])
    second = window(np.full((2, 1), 102), [101])
    settings = {"form": form, "weight": 0.2, "horizon": 2, "normalize": True}
    model = reward(**settings)
    model.score(first)
    saved = json.loads(json.dumps(model.state_dict()))
    expected = model.score(second)
    resumed = reward(**settings)
    resumed.load_state_dict(saved)
    np.testing.assert_array_equal(resumed.score(second), expected)
    assert not np.allclose(reward(**settings).score(second), expected)


def test_the_state_of_an_earlier_version_is_read() -> None:
    """It called the reward model a judge, knew no potential at the edge, and scaled something else."""
    watch = {"dense": [0.1], "success": [1.0], "warned": False}
    old = {"judge": "folder", "running": [0.2], "scale": [1e-4, 0.1], "watch": watch}
    model = reward(form="potential", normalize=True)
    model.load_state_dict(old)
    second = window(np.full((2, 1), 102), [101])
    np.testing.assert_array_equal(
        model.score(second), reward(form="potential", normalize=True).score(second)
    )


def test_the_scale_makes_the_reward_models_units_irrelevant() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    valid = np.ones((5, 3), bool)
    small, large = RunningScale().of(values, valid), RunningScale().of(100 * values, valid)
    assert small == pytest.approx(100 * large)
    assert np.sqrt(np.mean(np.square(small * values))) == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1, 1.1])
def test_scores_that_are_none_are_refused(wrong: float) -> None:
    """A reward model of damaged weights must not teach anything."""
    scores = np.array([[0.5], [wrong]], np.float32)
    given_scores = Scores(scores, scores, changed_from=9)
    model = ShapedReward(
        given_scores, ProcessRewardConfig(model="x", form="additive"), gamma=0.9, horizon=4
    )
    with pytest.raises(UserError, match="expected scores between 0 and 1"):
        model.score(given_scores.window(0, 2, np.zeros((2, 1), bool), np.zeros((2, 1), bool)))


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


# -- settings --------------------------------------------------------------------------------------


def test_bad_settings() -> None:
    with pytest.raises(
        ConfigError, match=r"reward.limit: expected a number of at least 0 and below 1, got 1"
    ):
        ProcessRewardConfig(limit=1.0)
    for reward_config in ({"model": "x"}, {"kind": "simulator"}):
        with pytest.raises(ConfigError, match=r"potential needs ppo.time_limit_is_terminal"):
            TrainConfig(
                ppo=PPOConfig(time_limit_is_terminal=False),
                reward=ProcessRewardConfig(form="potential", **reward_config),
            )
    with pytest.raises(ConfigError, match="the simulator needs no training: leave it at 0"):
        ProcessRewardConfig(kind="simulator", refresh_every=6)
    with pytest.raises(ConfigError, match="kind process needs the folder"):
        ProcessRewardConfig(kind="process")
    for kind in ("success", "simulator"):
        with pytest.raises(ConfigError, match=f"kind {kind} uses no reward model"):
            ProcessRewardConfig(kind=kind, model="x")
    with pytest.raises(ConfigError, match=r"set reward\.kind simulator"):
        ProcessRewardConfig(model="simulator")


def test_giving_a_model_is_enough() -> None:
    assert ProcessRewardConfig().chosen_kind == "success"
    assert ProcessRewardConfig(model="runs/reward").chosen_kind == "process"
    assert ProcessRewardConfig(kind="simulator").asks_simulator


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"judge": ""}, ProcessRewardConfig()),
        (
            {"judge": "runs/reward", "weight": 1.0},
            ProcessRewardConfig(model="runs/reward", weight=1.0),
        ),
        ({"judge": "simulator"}, ProcessRewardConfig(kind="simulator")),
        ({"model": "simulator"}, ProcessRewardConfig(kind="simulator")),
        ({"model": "runs/reward"}, ProcessRewardConfig(model="runs/reward")),
    ],
)
def test_configurations_of_earlier_versions(saved: dict, expected: ProcessRewardConfig) -> None:
    found = from_json(ProcessRewardConfig, saved, "reward")
    assert found == expected
    assert from_json(ProcessRewardConfig, to_json(found)) == expected
