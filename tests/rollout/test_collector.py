"""The actor-environment loop on environments whose answers are known, without simulators."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.policies import narrow_policy
from vla_rl.algorithms.advantages import compute_advantages
from vla_rl.config import CurriculumConfig, EnvConfig, PPOConfig
from vla_rl.curriculum import TaskSampler
from vla_rl.envs.env import EpisodesLostError
from vla_rl.envs.known_answers import ChainEnv
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.evaluation.episodes import play_each_once
from vla_rl.policies import OpenVLAPolicy
from vla_rl.rollout import Collector
from vla_rl.types import EpisodeSpec, StepResult

HORIZON = 6


@pytest.fixture(scope="module")
def policy() -> OpenVLAPolicy:
    return narrow_policy(ChainEnv.instructions)


def chain(num_envs: int, cls: type = SerialVectorEnv):
    config = EnvConfig(num_envs=num_envs, horizon=HORIZON, image_size=32, action_chunk=1)
    return cls(config, lambda c, count: [ChainEnv(c) for _ in range(count)])


def collector_of(policy: OpenVLAPolicy, envs, seed: int = 0):
    sampler = TaskSampler(CurriculumConfig(), envs.tasks, np.arange(5, dtype=np.int64), seed)
    collector = Collector(policy, envs, sampler.draw_one, seed)
    collector.start()
    return collector, sampler


def test_window_holds_what_was_seen_said_and_answered(policy: OpenVLAPolicy):
    collector, _ = collector_of(policy, chain(4))
    collected = collector.collect(20, 1.0, 0)
    rollout = collected.rollout
    # the chain: a bright column is a cell passed, so the image tells the state; actions follow from the tokens
    cells = (rollout.images[:, :, 0, :, 0] > 0).sum(-1)
    actions = policy.decode_actions(torch.from_numpy(rollout.tokens.reshape(-1, 4)))
    forward = actions[:, 0, 0].reshape(20, 4) > 0
    ended = rollout.terminated | rollout.truncated
    for t in range(19):
        for n in range(4):
            if not ended[t, n]:
                moved = cells[t + 1, n] > cells[t, n]
                assert moved == forward[t, n]
                assert rollout.time_fraction[t + 1, n] == pytest.approx(
                    rollout.time_fraction[t, n] + 1 / HORIZON
                )
            else:
                assert rollout.time_fraction[t + 1, n] == 0.0
    assert np.array_equal(rollout.rewards > 0, rollout.terminated)
    assert len(collected.finished) == ended.sum()
    assert sum(e.success for e in collected.finished) == rollout.terminated.sum()
    assert all(1 <= e.turns <= HORIZON for e in collected.finished)


def test_the_simulators_own_reward_is_of_the_state_after_a_turn(policy: OpenVLAPolicy):
    """The chain's is the share of the corridor walked, which the next image shows; a success has walked it all."""
    with chain(4) as envs:
        sampler = TaskSampler(CurriculumConfig(), envs.tasks, np.arange(5, dtype=np.int64), 0)
        collector = Collector(
            policy,
            envs,
            sampler.draw_one,
            0,
            dense_reward_max=ChainEnv.DENSE_REWARD_MAX,
        )
        collector.start()
        rollout = collector.collect(20, 1.0, 0).rollout
    walked = rollout.simulator_rewards
    assert walked is not None
    assert rollout.terminated.any()
    assert rollout.truncated.any()
    np.testing.assert_allclose(walked[rollout.terminated], 1.0)
    assert (walked[rollout.truncated] < 1).all()
    bright = (rollout.images[:, :, 0, :, 0] > 0).mean(-1)  # (state + 1/2) of LENGTH + 1/2
    state = bright * (ChainEnv.LENGTH + 0.5) - 0.5
    goes_on = ~rollout.ended[:-1]
    np.testing.assert_allclose(
        walked[:-1][goes_on], state[1:][goes_on] / ChainEnv.LENGTH, atol=0.05
    )


def test_a_simulator_lost_while_it_is_asked_ends_nothing(policy: OpenVLAPolicy):
    class Losing(SerialVectorEnv):
        def dense_rewards(self, slots):
            raise EpisodesLostError("lost")

    envs = chain(4, Losing)
    sampler = TaskSampler(CurriculumConfig(), envs.tasks, np.arange(5, dtype=np.int64), 0)
    collector = Collector(
        policy,
        envs,
        sampler.draw_one,
        0,
        dense_reward_max=ChainEnv.DENSE_REWARD_MAX,
    )
    collector.start()
    rollout = collector.collect(6, 1.0, 0).rollout
    assert np.isnan(rollout.simulator_rewards).all()
    assert rollout.valid.all(), "the turn before has its outcome"


def test_nobody_asks_the_simulator_unless_told_to(policy: OpenVLAPolicy):
    collector, _ = collector_of(policy, chain(4))
    assert collector.collect(3, 1.0, 0).rollout.simulator_rewards is None


def test_turns_of_an_episode_that_succeeded_are_marked(policy: OpenVLAPolicy):
    collector, _ = collector_of(policy, chain(4))
    rollout = collector.collect(24, 1.0, 0).rollout
    for n in range(4):
        start = 0
        for t in range(24):
            if rollout.terminated[t, n] or rollout.truncated[t, n]:
                assert (rollout.succeeded[start : t + 1, n] == rollout.terminated[t, n]).all()
                start = t + 1
        assert not rollout.succeeded[start:, n].any(), "an episode still running has not succeeded"


def test_windows_follow_each_other_without_a_gap(policy: OpenVLAPolicy):
    one, _ = collector_of(policy, chain(4))
    first, second = one.collect(7, 1.0, 0).rollout, one.collect(7, 1.0, 1).rollout
    running = ~(first.terminated[-1] | first.truncated[-1])
    assert running.any()
    assert (second.time_fraction[0][running] > 0).all()
    assert (second.time_fraction[0][~running] == 0).all()
    np.testing.assert_allclose(first.next_values, second.values[0], atol=1e-6)


def test_continuing_from_a_saved_state_gives_the_same_window_to_the_bit(policy: OpenVLAPolicy):
    first, sampler = collector_of(policy, chain(5))
    first.collect(9, 1.0, 0)
    saved, tasks = first.state_dict(), sampler.state_dict()
    expected = first.collect(9, 1.0, 1).rollout

    second, other_sampler = collector_of(policy, chain(5))
    other_sampler.load_state_dict(tasks)
    second.load_state_dict(saved)
    again = second.collect(9, 1.0, 1).rollout
    for name in (
        "images",
        "tokens",
        "log_probs",
        "values",
        "rewards",
        "time_fraction",
        "terminated",
        "truncated",
    ):
        np.testing.assert_array_equal(getattr(expected, name), getattr(again, name), err_msg=name)


class CrashingEnv(SerialVectorEnv):
    """Reports slot 1 as lost at its third step, as a vector environment does after a worker's crash."""

    steps = 0

    def wait(self, slots):
        result = super().wait(slots)
        if 1 in list(slots) and getattr(self, "_stepped", False):
            self.steps += 1
            if self.steps == 3:
                lost = np.array([slot == 1 for slot in slots])
                self.infrastructure_errors += 1
                return StepResult(
                    result.slots, result.observation, result.rewards, result.terminated, result.truncated,
                    result.simulator_steps, lost,
                )  # fmt: skip
        return result

    def post_step(self, slots, actions):
        self._stepped = True
        super().post_step(slots, actions)

    def post_reset(self, slots, specs):
        self._stepped = False
        super().post_reset(slots, specs)


def test_crashed_episode_is_played_again_and_never_counted(policy: OpenVLAPolicy):
    envs = chain(2, CrashingEnv)
    collector, _ = collector_of(policy, envs)
    collected = collector.collect(12, 1.0, 0)
    rollout = collected.rollout
    assert not rollout.valid[2, 1]
    assert rollout.valid.sum() == rollout.valid.size - 1
    assert rollout.initial_states[3, 1] == rollout.initial_states[2, 1]
    assert rollout.time_fraction[3, 1] == 0.0
    assert len(collected.finished) == (rollout.terminated | rollout.truncated).sum()


class FailingEnv(SerialVectorEnv):
    """Loses each of its first four steps."""

    stepping = frozenset[int]()

    def post_step(self, slots, actions):
        self.stepping |= set(slots)
        super().post_step(slots, actions)

    def wait(self, slots):
        result = super().wait(slots)
        lost = np.array([slot in self.stepping for slot in slots])
        self.stepping -= set(slots)
        if lost.any() and self.infrastructure_errors < 4:
            self.infrastructure_errors += int(lost.sum())
            return replace(result, lost=lost)
        return result


def test_a_window_that_was_lost_whole_is_played_again(policy: OpenVLAPolicy):
    envs = chain(2, FailingEnv)
    collector, _ = collector_of(policy, envs)
    collected = collector.collect(2, 1.0, 0)
    assert envs.infrastructure_errors == 4, "two turns of two environments"
    assert collected.rollout.valid.all()
    assert np.all(collected.rollout.time_fraction[0] == 0), "each episode from its beginning"
    assert (
        len(collected.finished)
        == (collected.rollout.terminated | collected.rollout.truncated).sum()
    )


def test_turns_are_numbered_by_episode_across_windows(policy: OpenVLAPolicy):
    collector, _ = collector_of(policy, chain(4))
    windows = [collector.collect(9, 1.0, 0), collector.collect(9, 1.0, 1)]
    ids, ended = (
        np.concatenate([getattr(w.rollout, name) for w in windows])
        for name in ("episode_ids", "ended")
    )
    # an environment's number changes after the last turn of an episode, and then only
    assert np.array_equal(ids[1:] != ids[:-1], ended[:-1])
    assert np.array_equal(ids % 4, np.tile(np.arange(4), (18, 1))), (
        "no environment asks another one"
    )
    assert all(np.array_equal(np.unique(of // 4), np.arange(of.max() // 4 + 1)) for of in ids.T)
    finished = [episode for w in windows for episode in w.finished]
    for episode in finished:
        turns = ids == episode.number
        assert turns.sum() == episode.turns
        assert len(np.flatnonzero(turns.any(0))) == 1, "an episode stays in its environment"
    groups = np.concatenate([w.rollout.group_ids for w in windows])
    assert len({(e, g) for e, g in zip(ids.flat, groups.flat, strict=True)}) == len(np.unique(ids))
    assert len(np.unique(groups)) == len(np.unique(ids)), "drawn alone, each is a group of its own"


def test_numbers_go_on_after_a_resume_and_in_checkpoints_that_have_none(policy: OpenVLAPolicy):
    first, drawn = collector_of(policy, chain(4))
    first.collect(9, 1.0, 0)
    saved, tasks = first.state_dict(), drawn.state_dict()
    expected = first.collect(9, 1.0, 1).rollout
    for state in (saved, {"slots": saved["slots"]}):
        again, sampler = collector_of(policy, chain(4))
        again.load_state_dict(state)
        sampler.load_state_dict(tasks)
        rollout = again.collect(9, 1.0, 1).rollout
        assert np.array_equal(rollout.images[0], expected.images[0])
        if "numbers" in state:
            assert np.array_equal(rollout.episode_ids, expected.episode_ids)
            assert np.array_equal(rollout.group_ids, expected.group_ids)
        else:
            assert rollout.episode_ids[0].tolist() == [0, 1, 2, 3]
            assert len(np.unique(rollout.episode_ids)) == 4 + rollout.ended[:-1].sum()


def groups_of(sampler: TaskSampler, groups: int, size: int) -> list[list[EpisodeSpec]]:
    return [sampler.draw_group(size) for _ in range(groups)]


@pytest.mark.parametrize("num_envs", [1, 3, 4, 20])
def test_groups_are_played_to_the_end_of_every_episode(policy: OpenVLAPolicy, num_envs: int):
    """Known answers: the chain gives every reward its length and every failure the horizon's."""
    sampler = TaskSampler(CurriculumConfig(), ("chain",), np.arange(5, dtype=np.int64), 0)
    collector = Collector(policy, chain(num_envs), sampler.draw_one, 0)
    groups = groups_of(sampler, 4, 3)
    collected = collector.collect_episodes(groups, 1.0, 0)
    rollout, ids = collected.rollout, collected.rollout.episode_ids
    assert [e.spec for e in sorted(collected.finished, key=lambda e: e.number)] == [
        spec for group in groups for spec in group
    ]
    assert sorted(e.number for e in collected.finished) == list(range(12))
    assert np.array_equal(rollout.valid, ids >= 0)
    for episode in collected.finished:
        turns, slots = np.nonzero(ids == episode.number)
        assert len(turns) == episode.turns
        assert set(turns) == set(range(turns[0], turns[-1] + 1))
        assert rollout.time_fraction[turns[0], slots[0]] == 0.0
        assert rollout.ended[turns[-1], slots[0]]
        assert (rollout.terminated | rollout.truncated)[turns, slots].sum() == 1
        assert (rollout.succeeded[turns, slots] == episode.success).all()
        assert (rollout.group_ids[turns, slots] == episode.group).all()
        assert episode.group == episode.number // 3
        assert (rollout.initial_states[turns, slots] == episode.spec.initial_state).all()
        if not episode.success:
            assert episode.turns == HORIZON
    assert rollout.num_turns == sum(e.turns for e in collected.finished)
    assert (ids >= 0).any(1).all(), "the window has rows in which nobody plays"
    assert not rollout.next_values.any()
    assert not rollout.images[ids < 0].any()


def test_members_of_a_group_play_differently(policy: OpenVLAPolicy):
    sampler = TaskSampler(CurriculumConfig(), ("chain",), np.arange(5, dtype=np.int64), 0)
    collector = Collector(policy, chain(4), sampler.draw_one, 0)
    rollout = collector.collect_episodes([sampler.draw_group(4)], 1.0, 0).rollout
    first = rollout.tokens[0]
    assert len({tuple(row) for row in first}) > 1
    assert all(np.array_equal(image, rollout.images[0, 0]) for image in rollout.images[0])


def test_the_same_seed_plays_the_same_groups_and_the_next_window_others(policy: OpenVLAPolicy):
    def windows() -> list[np.ndarray]:
        sampler = TaskSampler(CurriculumConfig(), ("chain",), np.arange(5, dtype=np.int64), 0)
        collector = Collector(policy, chain(3), sampler.draw_one, 0)
        return [
            collector.collect_episodes(groups_of(sampler, 2, 2), 1.0, i).rollout.tokens
            for i in range(2)
        ]

    first, again = windows(), windows()
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape != first[1].shape or not np.array_equal(first[0], first[1])


def test_an_attempt_that_is_lost_counts_for_nothing_and_its_episode_is_played_again(
    policy: OpenVLAPolicy,
):
    sampler = TaskSampler(CurriculumConfig(), ("chain",), np.arange(5, dtype=np.int64), 0)
    envs = chain(2, CrashingEnv)
    collector = Collector(policy, envs, sampler.draw_one, 0)
    groups = [[EpisodeSpec("chain", 0)] * 2]
    collected = collector.collect_episodes(groups, 1.0, 0)
    rollout = collected.rollout
    assert envs.infrastructure_errors == 1
    again_number = 1 + 2**40  # of the second attempt: known without asking other processes
    assert {(e.number, e.group) for e in collected.finished} == {(0, 0), (again_number, 0)}
    assert (rollout.episode_ids[:3, 1] == 1).all(), "lost in its third turn"
    assert not rollout.valid[rollout.episode_ids == 1].any()
    again = rollout.episode_ids == again_number
    assert rollout.valid[again].all()
    assert rollout.time_fraction[again][0] == 0.0
    assert (rollout.initial_states[again] == 0).all()


def test_a_window_of_groups_can_be_saved_and_learned_from(policy: OpenVLAPolicy):
    """Nothing of it is left running: the saved state starts from nothing."""
    sampler = TaskSampler(CurriculumConfig(), ("chain",), np.arange(5, dtype=np.int64), 0)
    collector = Collector(policy, chain(3), sampler.draw_one, 0)
    first = collector.collect_episodes(groups_of(sampler, 2, 3), 1.0, 0)
    saved, tasks = collector.state_dict(), sampler.state_dict()
    expected = collector.collect_episodes(groups_of(sampler, 2, 3), 1.0, 1).rollout
    collector.load_state_dict(saved)
    sampler.load_state_dict(tasks)
    again = collector.collect_episodes(groups_of(sampler, 2, 3), 1.0, 1).rollout
    for name in ("tokens", "episode_ids", "group_ids", "images"):
        assert np.array_equal(getattr(again, name), getattr(expected, name)), name
    assert again.episode_ids[again.valid].min() == len(first.finished)
    ppo = PPOConfig(normalize_advantages=False, gamma=1.0, gae_lambda=1.0, value_lambda=1.0)
    batch = compute_advantages(first.rollout, np.zeros_like(first.rollout.rewards), ppo)
    assert len(batch) == first.rollout.num_turns
    outcome = np.concatenate(
        [first.rollout.succeeded[first.rollout.valid[:, env], env] for env in range(3)]  # by shard
    ).astype(np.float32)
    np.testing.assert_allclose(batch.value_targets.numpy(), outcome, atol=1e-6)


def test_windows_and_groups_do_not_mix(policy: OpenVLAPolicy):
    collector, sampler = collector_of(policy, chain(2))
    with pytest.raises(RuntimeError, match="still running"):
        collector.collect_episodes([sampler.draw_group(2)], 1.0, 0)
    idle = Collector(policy, chain(2), sampler.draw_one, 0)
    with pytest.raises(RuntimeError, match="call start"):
        idle.collect(3, 1.0, 0)
    with pytest.raises(ValueError, match="no episodes"):
        idle.collect_episodes([], 1.0, 0)


@pytest.mark.parametrize("num_envs", [1, 2, 3, 8])
def test_evaluation_plays_every_episode_exactly_once(policy: OpenVLAPolicy, num_envs: int):
    specs = [EpisodeSpec("chain", i) for i in range(5)]
    ended: list[EpisodeSpec] = []
    records = play_each_once(
        policy,
        chain(num_envs),
        specs,
        temperature=1.0,
        seed=3,
        on_episode=lambda r: ended.append(r.spec),
    )
    assert [r.spec for r in records] == specs
    assert sorted(ended) == sorted(specs)
    assert all(len(r.tokens) == r.turns for r in records)


def test_sampled_evaluation_does_not_depend_on_how_many_environments_play(policy: OpenVLAPolicy):
    specs = [EpisodeSpec("chain", i) for i in range(5)]
    runs = [play_each_once(policy, chain(n), specs, temperature=1.0, seed=3) for n in (1, 4)]
    assert [(r.success, r.turns, r.tokens) for r in runs[0]] == [
        (r.success, r.turns, r.tokens) for r in runs[1]
    ]
    other = play_each_once(policy, chain(4), specs, temperature=1.0, seed=4)
    assert [r.tokens for r in other] != [r.tokens for r in runs[0]]


def test_nothing_to_evaluate_is_an_error(policy: OpenVLAPolicy):
    with pytest.raises(ValueError, match="no episodes"):
        play_each_once(policy, chain(2), [])
