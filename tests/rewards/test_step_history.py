"""A reward model with a history in the loop: what it is shown across windows, processes and a resumed run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from builders.rollouts import window as zeros
from vla_rl.config import PPOConfig, ProcessRewardConfig, TrainConfig, UserError
from vla_rl.distributed.world import SingleProcess
from vla_rl.rewards import RewardModelScorer
from vla_rl.rewards.process.model import RewardModelDescription
from vla_rl.rewards.process_reward import _require_fit
from vla_rl.rewards.shaping import ShapedReward
from vla_rl.rewards.step_history import StepHistory
from vla_rl.runtime.trees import join_arrays, split_arrays
from vla_rl.types import Rollout

F = 3  # images a moment shows
TURNS, ENVS = 12, 4


def played(turns: int = TURNS, envs: int = ENVS) -> Rollout:
    """Every image holds turn and environment; episodes of different lengths, one of them lost."""
    images = np.zeros((turns, envs, 2, 2, 3), np.uint8)
    images[..., 0, 0, 0] = np.arange(turns)[:, None]
    images[..., 0, 0, 1] = np.arange(envs)
    after = np.zeros((envs, 2, 2, 3), np.uint8)
    after[:, 0, 0, 0], after[:, 0, 0, 1] = turns, np.arange(envs)
    terminated, valid = np.zeros((turns, envs), bool), np.ones((turns, envs), bool)
    terminated[4, 0] = terminated[5, 1] = terminated[turns - 1, 2] = True
    valid[7, 3] = False
    ended = terminated | ~valid
    ids = np.cumsum(np.concatenate([np.zeros((1, envs), int), ended[:-1]]), 0)
    return zeros(
        turns, envs, images=images, next_images=after, terminated=terminated, valid=valid,
        episode_ids=ids + 100 * np.arange(envs),
    )  # fmt: skip


def part(rollout: Rollout, start: int, stop: int, envs: slice = slice(0, ENVS)) -> Rollout:
    """Some turns of a rollout, of which only these environments' images are here."""
    rows = slice(start, stop)
    whole = rollout.next_images if stop == TURNS else rollout.images[stop]
    arrays = {
        name: getattr(rollout, name)[rows]
        for name in ("task_ids", "episode_ids", "group_ids", "initial_states", "proprio", "time_fraction", "tokens",
                     "log_probs", "values", "rewards", "terminated", "truncated", "final_values", "succeeded", "valid")
    }  # fmt: skip
    return replace(
        rollout,
        **arrays,
        images=rollout.images[rows, envs],
        next_images=whole[envs],
        first=envs.start,
    )


def done(rollout: Rollout) -> np.ndarray:
    """The action of turn t in environment n is t + n / 10."""
    turns = rollout.images[..., 0, 0, 0].astype(np.float32)
    return (turns + np.float32(0.1) * rollout.images[..., 0, 0, 1])[..., None, None]


def test_every_moment_shows_the_steps_of_its_own_episode() -> None:
    seen = StepHistory(F).follow(played(), done(played()))
    turns, count = seen.images[..., 0, 0, 0], seen.past.count.reshape(TURNS + 1, ENVS)
    actions = seen.past.actions[..., 0, 0].reshape(TURNS + 1, ENVS, F - 1)
    assert (seen.images[..., 0, 0, 1] == np.arange(ENVS)[:, None]).all()
    assert turns[:2, 0].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert turns[4:7, 0].tolist() == [[2, 3, 4], [5, 5, 5], [5, 5, 6]]
    assert count[4:8, 0].tolist() == [2, 0, 1, 2]
    np.testing.assert_allclose(actions[4:7, 0], [[2, 3], [0, 0], [0, 5]])
    # a turn that was lost begins another episode, and so does an end in the last turn
    assert turns[7:10, 3].tolist() == [[5, 6, 7], [8, 8, 8], [8, 8, 9]]
    assert (turns[TURNS, 2].tolist(), count[TURNS, 2]) == ([12, 12, 12], 0)
    assert turns[TURNS, 0].tolist() == [10, 11, 12]
    np.testing.assert_allclose(actions[TURNS, 1], [10.1, 11.1], atol=1e-5)


@pytest.mark.parametrize("edges", [(0, 5, 12), (0, 1, 2, 3, 12), (0, 4, 8, 9, 10, 12)])
def test_windows_cut_no_history(edges: tuple[int, ...]) -> None:
    whole = StepHistory(F).follow(played(), done(played()))
    history = StepHistory(F)
    for start, stop in itertools.pairwise(edges):
        rollout = part(played(), start, stop)
        seen = history.follow(rollout, done(rollout))
        np.testing.assert_array_equal(seen.images, whole.images[start : stop + 1])
        rows = slice(start * ENVS, (stop + 1) * ENVS)
        np.testing.assert_array_equal(seen.past.actions, whole.past.actions[rows])
        np.testing.assert_array_equal(seen.past.count, whole.past.count[rows])


class Rank(SingleProcess):
    """One of several processes; `gather` puts together what all of them gave."""

    given: list

    def gather(self, value):
        self.given.append(value)
        return self.given


def test_any_number_of_processes_goes_on_where_others_stopped() -> None:
    """Saved by two processes, loaded by three and by one: all show what was shown without a stop."""
    alone = StepHistory(F)
    alone.follow(part(played(), 0, 6), done(part(played(), 0, 6)))
    later = part(played(), 6, 12)
    expected = alone.follow(later, done(later))
    world = Rank()
    world.given = []
    for envs in (slice(0, 1), slice(1, 4)):
        own, rollout = StepHistory(F), part(played(), 0, 6, envs)
        own.follow(rollout, done(rollout))
        saved = own.state_dict(world)
    assert saved is not None
    restored = join_arrays(*split_arrays({"history": saved}, "state"))["history"]
    for envs in (slice(0, 2), slice(2, 3), slice(3, 4), slice(0, 4)):
        own, rollout = StepHistory(F), part(played(), 6, 12, envs)
        own.load_state_dict(restored)
        # saved again before anything was played, it is the same
        again = own.state_dict(SingleProcess())
        assert again is not None
        np.testing.assert_array_equal(again["images"], saved["images"])
        seen = own.follow(rollout, done(rollout))
        np.testing.assert_array_equal(seen.images, expected.images[:, envs])
        np.testing.assert_array_equal(
            seen.past.actions.reshape(7, -1, 2), expected.past.actions.reshape(7, 4, 2)[:, envs]
        )
    fresh = StepHistory(F).follow(later, done(later))
    assert not np.array_equal(fresh.images, expected.images)


def test_the_history_of_other_environments_is_refused() -> None:
    history = StepHistory(F)
    history.follow(played(), done(played()))
    saved = history.state_dict(SingleProcess())
    other = played(envs=5)
    resumed = StepHistory(F)
    resumed.load_state_dict(saved)
    with pytest.raises(UserError, match="go on with the reward model and the environments"):
        resumed.follow(other, done(other))


class CountingModel:
    """Log-odds from known answers: the sum of the past actions' first numbers, less 5."""

    sees_actions = False
    description = RewardModelDescription(
        "known", "{instruction}?", "1", "0", 0, F, 1, 2, head="regression"
    )

    def log_odds(self, images, instructions, actions=None, past=None):
        assert actions is None
        assert past is not None
        assert images.shape[:2] == (len(instructions), F)
        return (past.actions[..., 0, 0].sum(1) - 5).astype(np.float32)


def scored(form: str = "potential") -> ShapedReward:
    def decode(tokens: np.ndarray, _: Sequence[str]) -> np.ndarray:
        return np.stack([tokens[:, :1], tokens[:, :1]], -1).astype(np.float32) / 10

    return ShapedReward(
        RewardModelScorer(CountingModel(), "folder", decode),
        ProcessRewardConfig(model="folder", form=form, weight=0.5),
        gamma=0.9,
        horizon=20,
    )


@pytest.mark.parametrize("form", ["additive", "potential", "progress"])
def test_a_resumed_run_is_paid_to_the_bit_what_an_unbroken_one_is(form: str) -> None:
    first, second = part(played(), 0, 6), part(played(), 6, 12)
    model = scored(form)
    model.score(first)
    saved = join_arrays(*split_arrays(model.state_dict(), "reward"))
    expected = model.score(second)
    resumed = scored(form)
    resumed.load_state_dict(saved)
    np.testing.assert_array_equal(resumed.score(second), expected)
    assert not np.allclose(scored(form).score(second), expected)
    old = scored(form)  # a state without a history, of before: episodes begin without one
    old.load_state_dict({k: v for k, v in saved.items() if k != "history"})
    assert np.isfinite(old.score(second)).all()


def test_progress_is_paid_as_the_difference_of_two_moments() -> None:
    rollout = part(played(), 0, 3)
    dense = scored("progress").score(rollout)
    # tokens of environment 0 are 0, 8, 16: what was done sums to 0, 0, 0.8 and 2.4 over the last two steps
    chance = 0.5 / (1 + np.exp(5 - np.array([0, 0, 0.8, 2.4])))
    np.testing.assert_allclose(dense[:, 0], np.diff(chance), atol=1e-5)


def test_a_reward_model_of_other_actions_is_refused() -> None:
    config = TrainConfig(reward=ProcessRewardConfig(model="x", form="potential"), ppo=PPOConfig())
    fits = SimpleNamespace(action_chunk=1, action_dim=2)
    description = replace(CountingModel.description, image_size=config.env.image_size)
    _require_fit(description, config, fits)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match="reads 1 actions of size 2, the policy decides 2 of size 4"
    ):
        _require_fit(description, config, SimpleNamespace(action_chunk=2, action_dim=4))  # type: ignore[arg-type]
