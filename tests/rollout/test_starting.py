"""Episodes that start at states of demonstrations: restored to the bit, and counted apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.policies import narrow_policy
from builders.started_demos import TOY, toy_demos
from vla_rl.config import CurriculumConfig, StartsConfig, UserError
from vla_rl.curriculum import Starts, TaskSampler
from vla_rl.data.demonstrations import ACTION, IMAGE, STATE
from vla_rl.data.lerobot import LeRobotReader
from vla_rl.distributed.shards import Shards
from vla_rl.envs.registry import benchmark, task_names
from vla_rl.envs.vector.make import make_vector_env
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.evaluation.episodes import play_each_once
from vla_rl.evaluation.videos import replay
from vla_rl.policies import OpenVLAPolicy
from vla_rl.rollout import Collector, rollout_metrics
from vla_rl.rollout.metrics import PHASES
from vla_rl.rollout.recording import RecordingVectorEnv
from vla_rl.rollout.starting import StartingVectorEnv, StartStates, require_same_everywhere
from vla_rl.rollout.together import own_state, whole_state
from vla_rl.types import EpisodeSpec, Start

TWO = replace(TOY, action_chunk=2, horizon=6, num_envs=4)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_demos(tmp_path_factory.mktemp("starting") / "demos")


@pytest.fixture(scope="module")
def states(demos: Path) -> StartStates:
    return StartStates(str(demos), TOY)


@pytest.fixture(scope="module")
def policy() -> OpenVLAPolicy:
    return narrow_policy(benchmark("toy").instructions("toy"))


def all_starts(states: StartStates) -> Iterator[EpisodeSpec]:
    for task, ways in states.ways().items():
        for way in ways:
            for frame in range(1, way.last + 1):
                yield EpisodeSpec(task, way.initial_state, Start(way.demonstration, frame))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restored_episode_goes_on_as_the_demonstration_did(
    workers: int, demos: Path, states: StartStates
) -> None:
    """Every state of every demonstration, in this process and in others: image, robot, time, and all that follows."""
    reader, config = LeRobotReader(demos), replace(TOY, num_workers=workers, num_envs=4)
    with make_vector_env(config) as plain:
        assert isinstance(plain, ProcessVectorEnv if workers else SerialVectorEnv)
        envs, seen = StartingVectorEnv(plain, states), 0
        every = list(all_starts(states))
        for specs in (every[i : i + 4] for i in range(0, len(every), 4)):
            slots = list(range(len(specs)))
            envs.post_reset(slots, specs)
            result = envs.wait(slots)
            for slot, spec in zip(slots, specs, strict=True):
                assert spec.start is not None
                episode, frame = reader.episode(spec.start.demonstration), spec.start.frame
                shown = result.observation.select([slot])
                for step in range(frame, len(episode[ACTION])):
                    np.testing.assert_array_equal(shown.images[0], episode[IMAGE][step])
                    np.testing.assert_array_equal(shown.proprio[0], episode[STATE][step])
                    assert shown.time_fraction[0] == pytest.approx(step / config.horizon)
                    assert shown.instructions == (episode["task"],)
                    envs.post_step([slot], episode[ACTION][step][None, None])
                    outcome = envs.wait([slot])
                    shown = outcome.observation
                    assert bool(outcome.terminated[0]) == episode["next.success"][step]
                seen += 1
        assert seen > 30, "the demonstrations are too short to say anything"


def test_turns_are_the_practices_own_and_the_time_limit_stays(demos: Path) -> None:
    """Demonstrations are played action by action; here a turn has two, and an action is held half as long."""
    states = StartStates(str(demos), TWO)
    assert [states.turns_at("place-block", frame) for frame in range(6)] == [0, 0, 1, 1, 2, 2]
    finer = StartStates(str(demos), replace(TWO, action_repeat=1, horizon=30))
    assert [finer.turns_at("place-block", frame) for frame in range(4)] == [0, 2, 5, 7]
    short = StartStates(str(demos), replace(TWO, horizon=2))
    assert {way.last for ways in short.ways().values() for way in ways} <= {1, 2, 3}
    assert max(short.turns_at(t, w.last) for t, ways in short.ways().items() for w in ways) == 1
    with make_vector_env(TWO) as plain:
        envs = StartingVectorEnv(plain, states)
        way = states.ways()["place-block"][0]
        spec = EpisodeSpec("place-block", way.initial_state, Start(way.demonstration, 3))
        envs.post_reset([0], [spec])
        assert envs.wait([0]).observation.time_fraction.tolist() == pytest.approx([1 / 6])
        away = np.full((1, 2, 4), -1, np.float32)
        for turn in range(2, 7):
            envs.post_step([0], away)
            assert envs.wait([0]).truncated.tolist() == [turn == 6]


def collector_of(
    policy: OpenVLAPolicy, states: StartStates, share: float = 0.6, envs: object = None
) -> tuple[Collector, Starts]:
    sampler = TaskSampler(
        CurriculumConfig(), task_names("toy"), np.arange(900, dtype=np.int64), seed=0
    )
    config = StartsConfig("d", share, "uniform")
    starts = Starts(config, sampler, states.ways(), 0, states.snapshots.digest)
    plain = make_vector_env(replace(TOY, num_envs=6)) if envs is None else envs
    return Collector(policy, StartingVectorEnv(plain, states), starts.draw_one, 0), starts  # type: ignore[arg-type]


def test_a_saved_window_goes_on_to_the_bit(policy: OpenVLAPolicy, states: StartStates) -> None:
    first, starts = collector_of(policy, states)
    first.start()
    first.collect(5, 1.0, 0)
    running = [e.spec.start is not None and e.turns > 0 for e in first.playing.values()]
    assert any(running), "no episode that started on the way is under way: take another seed"
    saved = whole_state([first.state_dict()])
    drawn = starts.sampler.state_dict()
    expected = first.collect(9, 1.0, 1)

    again, others = collector_of(policy, states)
    others.sampler.load_state_dict(drawn)
    again.load_state_dict(own_state(saved, Shards(6, 1)))
    rollout = again.collect(9, 1.0, 1).rollout
    for name in (
        "images",
        "proprio",
        "tokens",
        "values",
        "time_fraction",
        "assisted",
        "episode_ids",
    ):
        np.testing.assert_array_equal(getattr(rollout, name), getattr(expected.rollout, name), name)
    assert rollout.assisted is not None
    assert rollout.assisted.any()
    assert not rollout.assisted.all()


def test_checkpoints_of_before_have_true_beginnings(
    policy: OpenVLAPolicy, states: StartStates
) -> None:
    first, _ = collector_of(policy, states, share=0.0)
    first.start()
    saved = first.state_dict()
    del saved["starts"]
    again, _ = collector_of(policy, states)
    again.load_state_dict(saved)
    assert [e.spec for e in again.playing.values()] == [e.spec for e in first.playing.values()]


class LosingOnce(SerialVectorEnv):
    """Loses its first slot in the third turn, as a crash of its process does."""

    turns = 0

    def post_step(self, slots, actions):
        super().post_step(slots, actions)
        self.turns += 0 in list(slots)

    def wait(self, slots):
        result = super().wait(slots)
        if self.turns != 3 or 0 not in list(slots):
            return result
        self.turns, self.infrastructure_errors = 4, 1
        return replace(result, lost=np.array([slot == 0 for slot in slots]))


def test_a_lost_episode_starts_again_where_it_started(
    policy: OpenVLAPolicy, states: StartStates
) -> None:
    envs = LosingOnce(replace(TOY, num_envs=2), benchmark("toy").make_envs)
    collector, _ = collector_of(policy, states, envs=envs)
    way = states.ways()["place-block"][0]
    spec = EpisodeSpec("place-block", way.initial_state, Start(way.demonstration, 2))
    collector.draw = lambda env, shard: spec
    collector.start()
    rollout = collector.collect(5, 1.0, 0).rollout
    assert envs.infrastructure_errors == 1
    assert rollout.valid[:, 0].tolist() == [True, True, False, True, True]
    np.testing.assert_array_equal(rollout.images[3, 0], rollout.images[0, 0])
    assert rollout.time_fraction[3, 0] == rollout.time_fraction[0, 0] == np.float32(2 / TOY.horizon)
    assert rollout.episode_ids[3, 0] != rollout.episode_ids[0, 0]


def test_success_on_the_way_is_counted_apart(policy: OpenVLAPolicy, states: StartStates) -> None:
    collector, starts = collector_of(policy, states)
    collector.start()
    collected = collector.collect(40, 1.0, 0)
    starts.sampler.end_window(collected.outcomes)
    starts.end_window(collected.finished)
    whole = [e for e in collected.finished if e.spec.start is None]
    helped = [e for e in collected.finished if e.spec.start is not None]
    assert any(e.success for e in helped)
    assert len(whole) > 0
    assert collected.outcomes == [(e.spec.task, e.success) for e in whole]
    dense = np.ones_like(collected.rollout.rewards)
    phases = [dict.fromkeys(PHASES, 0.0)]
    metrics = rollout_metrics(collected, dense, phases, 1.0, collector.envs) | starts.metrics()
    assert metrics["rollout/episodes"] == len(whole) + len(helped)
    assert metrics["rollout/success_rate"] == np.mean([e.success for e in whole])
    assert metrics["rollout/episode_length"] == np.mean([e.turns for e in whole])
    assert metrics["starts/success_rate"] == np.mean([e.success for e in helped])
    for task in task_names("toy"):
        for name, own in ((f"success/{task}", whole), (f"starts/success/{task}", helped)):
            outcomes = [e.success for e in own if e.spec.task == task]
            assert metrics.get(name) == (np.mean(outcomes) if outcomes else None)
    rollout = collected.rollout
    assert rollout.assisted is not None
    assert metrics["rollout/return_sparse"] == pytest.approx(
        rollout.rewards[~rollout.assisted].sum() / len(whole)
    )
    assert metrics["rollout/return_dense"] == pytest.approx((~rollout.assisted).sum() / len(whole))
    numbers = {e.number for e in helped}
    assert {int(i) for i in rollout.episode_ids[rollout.assisted]} >= numbers
    assert not numbers & {int(i) for i in rollout.episode_ids[~rollout.assisted]}
    # what decides about the best checkpoint
    assert np.nansum(starts.sampler.measured()) == pytest.approx(
        sum(metrics.get(f"success/{task}", 0.0) for task in task_names("toy"))
    )


def test_films_begin_where_the_episode_did_and_records_do_not_hold_it(
    policy: OpenVLAPolicy, states: StartStates
) -> None:
    way = states.ways()["place-block"][1]
    spec = EpisodeSpec("place-block", way.initial_state, Start(way.demonstration, 2))
    whole = EpisodeSpec("place-block", way.initial_state)
    kept: list[object] = []
    with make_vector_env(TOY) as plain:
        envs = StartingVectorEnv(plain, states)
        recording = RecordingVectorEnv(envs, TOY, kept.append)
        records = play_each_once(policy, recording, [spec, whole], temperature=1.0)
    assert len(kept) == 1, "only the one that is seen from its beginning"
    studio = benchmark("toy").make_video_env(TOY)
    frames = replay(studio, records[0], policy, 1, states.begin)  # raises if it ends otherwise
    states.begin(studio, spec)
    np.testing.assert_array_equal(frames[0], studio.render())
    with pytest.raises(RuntimeError, match="StartingVectorEnv"):
        replay(studio, records[0], policy, 1)


def test_environments_without_demonstrations_start_none_in_silence(states: StartStates) -> None:
    spec = next(all_starts(states))
    for workers in (0, 1):
        with (
            make_vector_env(replace(TOY, num_envs=1, num_workers=workers)) as envs,
            pytest.raises(RuntimeError, match="StartingVectorEnv"),
        ):
            envs.post_reset([0], [spec])


def test_a_start_that_is_in_no_demonstration_is_refused(states: StartStates) -> None:
    spec = next(all_starts(states))
    assert spec.start is not None
    for wrong in (
        spec._replace(initial_state=spec.initial_state + 1),
        spec._replace(task="no such"),
        spec._replace(start=Start(999, 1)),
        spec._replace(start=Start(spec.start.demonstration, 99)),
    ):
        with pytest.raises(UserError, match="has no state"):
            states.snapshot(wrong)


def test_demonstrations_that_do_not_fit_the_run_are_refused(demos: Path, tmp_path: Path) -> None:
    one = replace(TOY, suite="toy:reach-red")
    red = toy_demos(tmp_path / "red", 1, env=one)
    with pytest.raises(
        UserError, match=r"demonstrations of grasp-block or .*got those of reach-red"
    ):
        StartStates(str(red), replace(TOY, suite="toy:grasp-block"))
    with pytest.raises(UserError, match=r"of the simulator metaworld.*got those of one without"):
        StartStates(str(demos), replace(TOY, suite="mt1:reach"))
    with pytest.raises(UserError, match=r"without the simulator's snapshots"):
        StartStates(str(toy_demos(tmp_path / "old", 1, snapshots=False, env=one)), one)
    with pytest.raises(UserError, match=r"is not for training \(env.initial_states 20"):
        StartStates(str(demos), replace(TOY, initial_states=20, held_out=5))
    some = StartStates(str(demos), replace(TOY, suite="toy:reach-red"))
    assert [*some.ways()] == ["reach-red"]
    require_same_everywhere(["a", "a"], "d")
    with pytest.raises(UserError, match="not the same on every machine"):
        require_same_everywhere(["a", "b"], "d")


@pytest.mark.parametrize("workers", [0, 1])
def test_states_of_another_simulation_are_found_out_at_the_door(workers: int, demos: Path) -> None:
    config = replace(TOY, num_workers=workers)
    with make_vector_env(config) as envs:
        StartStates(str(demos), config).require_restorable(envs)
        states = StartStates(str(demos), config)
        own = states.snapshots.snapshot

        def moved(number: int, frame: int):
            state = own(number, frame)
            return state | {"hand": state["hand"] + 0.01}

        states.snapshots.snapshot = moved
        with pytest.raises(UserError, match=r"a robot that is 0.01 away"):
            states.require_restorable(envs)
        states.snapshots.snapshot = lambda n, f: own(n, f) | {"hand": np.zeros(3)}
        with pytest.raises(UserError, match=r"expected hand of shape \(2,\), got .*\(3,\)"):
            states.require_restorable(envs)
