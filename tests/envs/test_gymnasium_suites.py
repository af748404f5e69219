"""Environments of others as suites: what is where, what is refused at the door, going back, and their own errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")
import gym_envs

from vla_rl.config import ConfigError, EnvConfig, UserError
from vla_rl.envs.check import check_env
from vla_rl.envs.defaults import laptop_env
from vla_rl.envs.gymnasium.benchmark import gymnasium_benchmark
from vla_rl.envs.gymnasium.env import GymEnv
from vla_rl.envs.gymnasium.options import gym_options
from vla_rl.envs.registry import BENCHMARKS, benchmark, make_envs, task_names
from vla_rl.envs.vector.make import make_vector_env
from vla_rl.types import EpisodeSpec

RAIL = "gym:gym_envs:Rail-v0"
START = EpisodeSpec("Rail-v0", 0)


def opened(suite: str, **settings: Any) -> GymEnv:
    config = replace(laptop_env(suite), image_size=16, action_chunk=1, **settings)
    (env,) = make_envs(config, 1)
    assert isinstance(env, GymEnv)
    return env


def layout(suite: str) -> Any:
    return benchmark(suite).make_envs.layout  # type: ignore[attr-defined]


# --- what is where


@pytest.mark.parametrize(
    ("options", "image", "proprio"),
    [
        ("", (), ()),
        (",make.looks=dict", ("pixels",), (("agent_pos",),)),
        (
            ",make.looks=dict,proprio=goal,proprio=agent_pos",
            ("pixels",),
            (("goal",), ("agent_pos",)),
        ),
        (",make.looks=dict,proprio=none,image=render", None, ()),
        (",make.looks=nested,image=pixels/side", ("pixels", "side"), ()),
        (",make.looks=tuple", (1,), ()),
        (",make.looks=tuple,proprio=0", (1,), ((0,),)),
        (",make.looks=vector,proprio=observation", None, ((),)),
        (",make.looks=planes", (), ()),
        (",make.looks=grey", (), ()),
    ],
)
def test_image_and_proprioception_are_found_or_named(
    options: str, image: Any, proprio: Any
) -> None:
    found = layout(RAIL + options)
    assert (found.image, found.proprio) == (image, proprio)
    env = opened(RAIL + options)
    env.reset(START)
    seen = env.render()
    assert (seen.dtype, seen.shape) == (np.uint8, (16, 16, 3))
    assert seen[:, :, 0].argmax(axis=1)[3] == 8  # the carriage stands in the middle
    assert env.proprio().shape == (max(1, 2 * len(proprio)),)


def test_an_image_that_is_not_square_keeps_its_proportions() -> None:
    env = opened(f"{RAIL},make.looks=wide")
    env.reset(START)
    image = env.render()
    assert image[:3].max() == 0 and image[-3:].max() == 0  # noqa: PT018
    assert image[8].max() > 100


def test_a_second_image_is_shown_where_it_is_asked_for() -> None:
    suite = f"{RAIL},make.looks=nested,image=pixels/top,wrist=pixels/side"
    env = opened(suite, wrist_camera="pixels/side")
    env.reset(START)
    np.testing.assert_array_equal(env.render_wrist(), env.render())  # type: ignore[attr-defined]
    assert not hasattr(opened(RAIL), "render_wrist")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (",make.looks=float", r"is Box\(0.0, 1.0.*expected images of uint8.*255 \* image.*image=render"),
        (",make.looks=float,image=observation", r"expected images of uint8"),
        (",make.looks=int64", r"expected images of uint8"),
        (",make.looks=lying", r"gave float32 of shape \(16, 16, 3\): expected uint8"),
        (",make.looks=nested", r"2 images: choose with image=pixels/side, image=pixels/top"),
        (",make.looks=dict,image=pixel", r"no image=pixel\. Did you mean 'pixels'"),
        (",make.looks=dict,proprio=pixels", r"proprio=pixels is Box.*expected a Box of numbers"),
        (",make.actions=open", r"unbounded in component 0, 1: .*bounds=-1\.\.1"),
        (",make.actions=discrete", r"its actions are Discrete\(3\): expected a Box"),
        (",make.actions=dict", r"its actions are Dict.*expected a Box"),
        (",make.actions=tuple", r"its actions are Tuple.*expected a Box"),
        (",make.actions=whole", r"its actions are Box.*int64.*float dtype"),
        (",make.actions=flat", r"component 0 of its actions has low >= high"),
        (",make.says=nothing", r"whether an episode has succeeded: .*its keys are instruction.*success=reward"),
        (",success=succes", r"expected info\['succes'\], its keys are instruction, success"),
        (",make.says=text,success=text", r"info\['text'\] is 'no': expected true or false"),
        (",make.text=", r"nothing says what is to be done: expected instruction="),
        (",make.text=another", r"says 'another 2' in one episode and 'another 1' in that of seed 1"),
        (",make.broken=triple", r"step gave tuple of 3: expected \(observation, reward"),
        (",make.broken=constructor", r"in its constructor: the licence has run out\s+\S*gym_envs\.py:\d+"),
        (",make.broken=reset", r"RuntimeError in its first episode: the rail is gone(?s:.*)gym_envs\.py:\d+ in reset"),
        (",make.broken=exit", r"raised SystemExit in its first episode: 3\s+\S*gym_envs\.py:\d+ in reset"),
        (",make.broken=no info", r"expected \(observation, info\), info a dict"),
        (",make.broken=nan", r"step gave the reward nan: expected one finite number"),
        (",make.wheels=4", r"TypeError in its constructor: .*wheels"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_clear_line_at_the_door(options: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        benchmark(RAIL + options)


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ("gym:", "expected gym:<id>"),
        ("gym:a b", "expected gym:<id>"),
        (
            "gym:Nowhere-v0",
            "`Nowhere` doesn't exist. One of a module of yours is gym:<module>:<id>",
        ),
        ("gym:gym_envs:Rail-v7", "`v7` for environment `Rail` doesn't exist"),
        ("gym:no_such_module:Rail-v0", "there is no module 'no_such_module': .*no_such_module.py"),
        (f"{RAIL},succes=reward", "no option 'succes'. Did you mean 'success'"),
        (f"{RAIL},success=reward,success=end", "says success= twice"),
        (f"{RAIL},success=", "success= needs a value"),
        (f"{RAIL},bounds=1..-1", r"bounds= expects two numbers as -1\.\.1"),
        (f"{RAIL},dense=nan", "a number above 0"),
        (f"{RAIL},task=a b", "task= expects a name"),
        (f"{RAIL},snapshots=all", "one of auto, state, replay, none"),
        (
            "gym:gym_envs:Blind-v0,make.looks=vector",
            r"has no image: .*render modes are \['human'\]",
        ),
    ],
)
def test_an_expression_that_does_not_fit_says_where(suite: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        benchmark(suite)


def test_an_option_reaches_to_the_next_one() -> None:
    options = gym_options(
        f"{RAIL},instruction=left, then right,make.n=3,make.s=true,make.t=a b,proprio=x"
    )
    assert options.instruction == "left, then right"
    assert options.make == (("n", 3), ("s", True), ("t", "a b"))
    assert (options.environment, options.task) == ("gym_envs:Rail-v0", "Rail-v0")


def test_an_environment_that_cannot_be_drawn_shows_what_the_policy_sees() -> None:
    suite = "gym:gym_envs:Modest-v0"
    assert layout(suite).renders is False
    check_env(suite)


# --- play


def test_actions_span_the_environments_bounds() -> None:
    env = opened(RAIL, action_repeat=1)
    env.reset(START)
    for asked, played in ((-1, [0, -0.2]), (1, [4, 0.2]), (0, [2, 0]), (9, [4, 0.2])):
        env.reset(START)
        env.step(np.full((1, 2), asked, np.float32))
        last = env.simulator.env.unwrapped.last
        assert last.dtype == np.float32
        np.testing.assert_allclose(last, played, atol=1e-6)
    env = opened(f"{RAIL},make.actions=open,bounds=-2..2")
    env.reset(START)
    env.step(np.full((1, 2), 0.5, np.float32))
    np.testing.assert_allclose(env.simulator.env.unwrapped.last, [1, 1])


@pytest.mark.parametrize(
    ("options", "towards", "away"),
    [
        ("", (1.0, True, False), (0.0, False, True)),
        (",make.says=reward,success=reward", (1.0, True, False), (0.0, False, True)),
        (",make.says=end,success=terminated", (1.0, True, False), (1.0, True, False)),
    ],
)
def test_success_is_what_the_rule_says_and_a_fall_is_no_success(options, towards, away) -> None:
    """Towards the mark the carriage arrives; away from it it falls off the rail, long before the horizon."""
    env = opened(RAIL + options, horizon=100)
    for sign, expected in ((1, towards), (-1, away)):
        env.reset(START)
        mark = env.simulator.env.unwrapped.mark
        action = np.array([[0, sign * np.sign(mark - 0.5)]], np.float32)
        outcome = (0.0, False, False, 1)
        while not (outcome[1] or outcome[2]):
            outcome = env.step(action)
        assert outcome[:3] == expected
        assert env.turns < 20


def test_the_dense_reward_is_the_environments_own() -> None:
    env = opened(f"{RAIL},dense=1")
    env.reset(START)
    action = np.array([[0, np.sign(env.simulator.env.unwrapped.mark - 0.5)]], np.float32)
    assert benchmark(f"{RAIL},dense=1").dense_reward_max == 1.0
    rewards = [(env.step(action)[1], env.dense_reward()) for _ in range(1)]  # type: ignore[attr-defined]
    assert rewards == [(rewards[0][0], float(rewards[0][0]))]
    assert not hasattr(opened(RAIL), "dense_reward")


def test_options_of_reset_reach_the_environment() -> None:
    env = opened(f"{RAIL},reset.level=3")
    env.reset(START)
    assert env.simulator.env.unwrapped.asked == {"level": 3}


def test_its_own_time_limit_is_the_horizon_and_no_wrapper_cuts_before() -> None:
    assert laptop_env(RAIL).horizon * laptop_env(RAIL).action_chunk == 20
    env = opened(RAIL, horizon=30)
    env.reset(START)
    outcomes = [env.step(np.zeros((1, 2), np.float32)) for _ in range(30)]
    assert [outcome[2] for outcome in outcomes] == [False] * 29 + [True]


def test_two_suites_of_gymnasium_make_a_union() -> None:
    suite = f"{RAIL},task=left,instruction=a+{RAIL},task=right,instruction=b"
    assert task_names(suite) == ("left", "right")
    env = make_envs(replace(laptop_env(suite), image_size=16), 1)[0]
    env.reset(EpisodeSpec("right", 0))
    assert env.instruction == "b"


def test_from_python_it_is_an_entry_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made = gymnasium_benchmark(
        "rail", gym_envs.make_rail, instruction="go", keywords={"looks": "dict"}, expert=gym_envs.go_to_mark
    )  # fmt: skip
    monkeypatch.setitem(BENCHMARKS, "rail", made)
    report = check_env("rail")
    assert (report.tasks, report.expert) == (("rail",), True)


# --- going back


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ("", "replay"),
        (",make.state=whole", "state"),
        (",make.state=whole,snapshots=replay", "replay"),
        (",make.state=partial", "replay"),  # it keeps something that its state does not say
        (",make.state=object", "replay"),  # a state that is no plain data
        (",make.broken=chance", "none"),
        (",snapshots=none", "none"),
    ],
)
def test_how_an_episode_is_gone_back_to_is_tried_out(options: str, keeps: str) -> None:
    assert layout(RAIL + options).keeps == keeps


@pytest.mark.parametrize("options", ["", ",make.state=whole", ",make.state=partial", ",dense=1"])
def test_an_episode_goes_on_from_its_snapshot(options: str) -> None:
    one, other = opened(RAIL + options, horizon=40), opened(RAIL + options, horizon=40)
    actions = 0.3 * np.random.default_rng(3).uniform(-1, 1, (9, 1, 2)).astype(np.float32)
    one.reset(EpisodeSpec("Rail-v0", 4))
    for action in actions[:4]:
        one.step(action)
    other.reset(EpisodeSpec("Rail-v0", 7))
    other.restore(one.snapshot())
    assert other.turns == 4
    np.testing.assert_array_equal(one.render(), other.render())
    if hasattr(one, "dense_reward"):
        assert one.dense_reward() == other.dense_reward()  # type: ignore[attr-defined]
    for action in actions[4:]:
        assert one.step(action) == other.step(action)
        np.testing.assert_array_equal(one.render(), other.render())


def test_what_does_not_work_without_snapshots_is_named() -> None:
    env = opened(f"{RAIL},make.broken=chance")
    env.reset(START)
    with pytest.raises(
        UserError, match=r"no snapshots: .*--snapshots and --starts, .*lookahead.*resumed"
    ):
        env.snapshot()
    with pytest.raises(
        ConfigError, match=r"snapshots=replay cannot be: the same seed and actions do not"
    ):
        benchmark(f"{RAIL},make.broken=chance,snapshots=replay")
    with pytest.raises(ConfigError, match=r"snapshots=state cannot be: its state does not"):
        benchmark(f"{RAIL},make.state=partial,snapshots=state")


def test_a_snapshot_of_another_environment_is_refused() -> None:
    env = opened(RAIL)
    with pytest.raises(
        UserError, match="expected the actions of an episode of gym:gym_envs:Rail-v0, 2 numbers"
    ):
        env.restore(
            {"task": "Rail-v0", "initial_state": 0, "turns": 1, "actions": np.zeros((1, 3))}
        )


# --- its own errors


def test_an_error_that_comes_again_is_told_at_once_and_no_process_is_restarted() -> None:
    suite = f"{RAIL},make.broken=step"
    config = replace(laptop_env(suite), image_size=16, action_chunk=1, num_envs=2, num_workers=1)
    still = np.zeros((1, 1, 2), np.float32)
    with make_vector_env(config) as envs:
        envs.post_reset([0, 1], [START, START])
        envs.wait([0, 1])
        for _ in range(8):
            envs.post_step([0], still)
            envs.wait([0])
        envs.post_step([0], still)
        with pytest.raises(UserError) as error:
            envs.wait([0])
        assert envs.infrastructure_errors == 0
    assert "raised ZeroDivisionError in step(): the wheels turn on air" in str(error.value)
    assert "gym_envs.py:" in str(error.value)
    assert 'raise ZeroDivisionError("the wheels turn on air")' in str(error.value)


def test_an_error_that_does_not_come_again_is_a_crash_like_any_other(tmp_path: Path) -> None:
    """The door is passed with the marker there; then it fails once."""
    marker = tmp_path / "failed"
    marker.touch()
    suite = f"{RAIL},make.broken=once,make.marker={marker}"
    env = opened(suite)
    env.reset(START)
    marker.unlink()
    still = np.zeros((1, 2), np.float32)
    env.step(still)
    env.step(still)
    with pytest.raises(OSError, match="the network is down"):
        env.step(still)


def test_the_check_says_what_an_environment_is_like() -> None:
    report = check_env(f"{RAIL},expert=gym_envs:go_to_mark", episodes=2)
    assert report.expert is True
    assert (report.instruction, report.action_dim, report.episodes) == ("go", 2, 2)
    assert report.step_seconds > 0
    assert "exact, by playing an episode again from its seed" in str(report)
    assert "remark" not in str(report)
    with pytest.raises(UserError, match="a numbered initial state depends on"):
        check_env(f"{RAIL},make.broken=chance")
    with pytest.raises(UserError, match="raised ZeroDivisionError in step"):
        check_env(f"{RAIL},make.broken=step")


def test_settings_are_remembered_with_the_suite() -> None:
    """All that says how an environment is read is in the one text that runs and results keep."""
    suite = f"{RAIL},success=reward,make.says=reward"
    assert EnvConfig(suite=suite).suite == suite
    assert benchmark(suite) is benchmark(suite)
