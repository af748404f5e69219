"""Several suites as one: what an expression means, what is refused, and that every task is played by its own clock."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from own_simulator import OWN, OwnEnv

from vla_rl.config import ConfigError, EnvConfig
from vla_rl.envs.defaults import (
    benchmark_env,
    evaluation_env,
    evaluation_protocol,
    laptop_env,
    suite_actions,
)
from vla_rl.envs.registry import (
    BENCHMARKS,
    benchmark,
    longest_horizon,
    make_envs,
    playable,
    settings_of,
    suites_of,
    task_names,
)
from vla_rl.envs.suites import suite_parts
from vla_rl.envs.toy.env import ToyEnv
from vla_rl.envs.union_env import UnionEnv, UnionPart, union_names
from vla_rl.envs.vector.make import make_vector_env
from vla_rl.types import EpisodeSpec

TOYS = "toy:reach-red+toy:grasp-block"
ENV = EnvConfig(
    suite=TOYS, image_size=16, action_chunk=1, num_envs=2, initial_states=12, held_out=2
)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    """A union of the toy and of somebody else's simulator, whose horizon is 20 steps on a clock of its own."""
    monkeypatch.setitem(BENCHMARKS, "own", replace(OWN, laptop_defaults=OWN.env_defaults))
    return "own+toy"


@pytest.mark.parametrize(
    ("expression", "parts"),
    [
        ("mt5", ("mt5",)),
        ("mt10+libero-object:0,1,2", ("mt10", "libero-object:0,1,2")),
        ("  libero-goal:0-3 +toy ", ("libero-goal:0-3", "toy")),
        ("libero-40", ("libero-spatial", "libero-object", "libero-goal", "libero-10")),
        ("libero-40:3", ("libero-spatial:3",)),
        ("libero-40:8-11,0", ("libero-spatial:8,9", "libero-object:0,1", "libero-spatial:0")),
        ("toy+libero-40:39", ("toy", "libero-10:9")),
    ],
)
def test_an_expression_names_its_suites(expression: str, parts: tuple[str, ...]) -> None:
    assert suite_parts(expression) == parts


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("mt5+", "part 2 of the union 'mt5[+]' is empty"),
        ("+mt5", "part 1 of the union"),
        ("mt5++toy", "part 2 of the union"),
        ("+", "part 1 of the union"),
        ("mt5+nowhere", "unknown suite 'nowhere'"),
        ("mt5+libero-gaol", "unknown LIBERO suite 'libero-gaol'.*libero-goal"),
        ("libero-4O", "unknown LIBERO suite 'libero-4O'"),
        ("libero-40:", "picked by number, 0 to 39, got ''"),
        ("libero-40:40", "tasks 0 to 39, got '40'"),
        ("libero-40:5-2", "got '5-2'"),
        ("libero-40:1,1", "names a task twice"),
        ("libero-40:²", "picked by number"),
        ("libero-40:99999999999999999999", "picked by number"),
        ("libero-40:put_the_bowl", "name the suite"),
        ("toy+toy", "'reach-red' twice, in 'toy' and in 'toy'"),
        ("mt5+mt10", "'drawer-open' twice, in 'mt5' and in 'mt10'"),
        ("toy:reach-red+toy:reach-rde", "no task 'reach-rde'"),
        ("mt5+" + "x" * 5000, "unknown suite"),
    ],
)
def test_what_is_wrong_with_an_expression_is_named(expression: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        task_names(expression)


def test_tasks_are_qualified_where_two_suites_share_a_name() -> None:
    part = UnionPart("libero-goal", "libero-goal", 300, 1, _none, _none, (), None)  # type: ignore[arg-type]
    other = replace(part, suite="libero-goal-swap:0-1", kind="libero-goal-swap")
    names = union_names("u", [part, other], [("open", "push"), ("push", "lift")])
    assert names == (("open", "libero-goal:push"), ("libero-goal-swap:push", "lift"))
    with pytest.raises(ConfigError, match="'push' twice"):  # of one kind it is the same task
        union_names("u", [part, replace(other, kind="libero-goal")], [("push",), ("push",)])


def _none(*_: object) -> object:
    raise AssertionError("nothing is made here")


def test_each_suite_has_its_own_clock_where_zero_is_said(own: str) -> None:
    config = replace(ENV, suite=own, horizon=0, action_repeat=0)
    clocks = {name: (c.horizon, c.action_repeat) for name, c in suites_of(config).items()}
    # 20 steps of 5 an action; 100 steps of 20
    assert clocks == {"own": (4, 5), "toy": (5, 20)}
    assert longest_horizon(config) == 5
    assert settings_of(config, "reach-blue").suite == "toy"
    said = replace(config, horizon=3, action_repeat=2)  # an explicit number is for all
    assert {(c.horizon, c.action_repeat) for c in suites_of(said).values()} == {(3, 2)}
    with pytest.raises(ConfigError, match="not in suite"):
        settings_of(config, "reach-rde")


def test_zero_is_the_suites_own_for_one_suite_too() -> None:
    config = EnvConfig(
        suite="toy", horizon=0, action_repeat=0, action_chunk=2, image_size=16, num_envs=1
    )
    assert settings_of(config, "reach-red").horizon == 3  # 100 steps, two actions of 20 a turn
    with make_vector_env(config) as envs:
        assert envs.horizon == 3
    env = make_envs(config, 1)[0]
    assert isinstance(env, ToyEnv)
    assert env.action_repeat == 20


def test_a_horizon_for_all_suites_is_said(own: str, caplog: pytest.LogCaptureFixture) -> None:
    with make_vector_env(replace(ENV, suite=own, horizon=0, action_repeat=0)):
        assert not caplog.text
    with make_vector_env(replace(ENV, suite=own, horizon=3, action_repeat=0)):
        assert (
            "env.horizon 3 is for all suites of own+toy; their own would be own 4, toy 5"
            in caplog.text
        )


def test_the_joint_suite_has_the_protocols_horizons() -> None:
    steps = {name: c.horizon for name, c in suites_of(benchmark_env("libero-40")).items()}
    assert steps == {
        "libero-spatial": 220, "libero-object": 280, "libero-goal": 300, "libero-10": 520,
    }  # fmt: skip
    turns = [c.horizon for c in suites_of(laptop_env("libero-40")).values()]
    assert turns == [28, 35, 38, 65]
    env = benchmark_env("libero-40")
    assert (env.initial_states, env.action_repeat, env.image_size) == (50, 1, 256)
    assert playable(env).stored_states == 50
    with pytest.raises(ConfigError, match="at most 50"):
        playable(replace(env, suite="mt5+libero-40", initial_states=51))


def test_an_episode_is_played_by_its_own_suite(own: str) -> None:
    config = replace(ENV, suite=own, horizon=0, action_repeat=0)
    env = make_envs(config, 1)[0]
    assert isinstance(env, UnionEnv)
    assert env.tasks == (*OwnEnv.tasks, *task_names("toy"))
    alone = make_envs(settings_of(config, "grasp-block"), 1)[0]
    spec = EpisodeSpec("grasp-block", 3)
    for played in (env, alone):
        played.reset(spec)
        played.step(np.full((1, 4), 0.3, np.float32))
    np.testing.assert_array_equal(env.render(), alone.render())
    np.testing.assert_array_equal(env.proprio(), alone.proprio())
    assert env.turn_limit == 5
    kept = env.snapshot()
    env.reset(EpisodeSpec(OwnEnv.tasks[0], 1))
    assert env.turn_limit == 4
    env.restore(kept)
    assert (env.turns, env.instruction, env.turn_limit) == (1, alone.instruction, 5)
    np.testing.assert_array_equal(env.render(), alone.render())
    with pytest.raises(ConfigError, match="not in suite"):
        env.reset(EpisodeSpec("nothing", 0))


class _Short(ToyEnv):
    """The toy, told by two numbers: the others stay 0."""

    action_dim = 2
    proprio_dim = 2

    def step(self, actions, on_frame=None):
        assert actions.shape[1] == 2
        return super().step(np.pad(actions, ((0, 0), (0, 2))), on_frame)

    def proprio(self):
        return super().proprio()[:2]


def test_a_robot_with_fewer_numbers_takes_the_first() -> None:
    config = EnvConfig(suite="toy:reach-red", image_size=16, action_chunk=1)
    parts = [
        UnionPart("toy:reach-red", "short", 100, 20, _none, _none, (1.0,), 1.0),  # type: ignore[arg-type]
        UnionPart("toy:grasp-block", "toy", 100, 20, _none, _none, (1.0,), 1.0),  # type: ignore[arg-type]
    ]
    envs = [_Short(config), ToyEnv(replace(config, suite="toy:grasp-block"))]
    env = UnionEnv(parts, config, envs)
    assert (env.action_dim, env.proprio_dim) == (4, 4)
    env.reset(EpisodeSpec("reach-red", 0))
    env.step(np.array([[0.5, 0.5, 0.9, 0.9]], np.float32))
    assert env.proprio().shape == (4,)
    assert env.proprio()[2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_critic_hears_the_share_of_the_episodes_own_horizon(own: str, workers: int) -> None:
    suite = TOYS if workers else own  # another process does not know our own simulator
    config = replace(ENV, suite=suite, horizon=0, action_repeat=0, num_workers=workers)
    tasks = task_names(suite)
    first, last = tasks[0], tasks[-1]
    with make_vector_env(config) as envs:
        assert envs.horizon == 5
        envs.post_reset([0, 1], [EpisodeSpec(first, 0), EpisodeSpec(last, 0)])
        envs.wait([0, 1])
        envs.post_step([0, 1], np.zeros((2, 1, 4), np.float32))
        seen = envs.wait([0, 1]).observation.time_fraction.tolist()
    limits = [settings_of(config, task).horizon for task in (first, last)]
    assert seen == pytest.approx([1 / limit for limit in limits])


def test_a_dense_reward_is_a_share_of_what_its_suite_gives() -> None:
    played = benchmark("mt1:drawer-open+toy")
    assert played.dense_reward_max == 1.0
    assert benchmark("toy+libero-goal").dense_reward_max is None
    env = make_envs(replace(ENV, horizon=5, action_repeat=20), 1)[0]
    alone = make_envs(replace(ENV, suite="toy:reach-red", horizon=5, action_repeat=20), 1)[0]
    for one in (env, alone):
        one.reset(EpisodeSpec("reach-red", 0))
        one.step(np.zeros((1, 4), np.float32))
    assert env.dense_reward() == pytest.approx(alone.dense_reward())  # type: ignore[attr-defined]


def test_a_policy_of_a_union_is_evaluated_on_each_suite_by_its_own_horizon(own: str) -> None:
    trained = replace(ENV, suite=own, horizon=0, action_repeat=0)
    there = evaluation_env("toy:reach-blue", trained, 16, False, 1)
    assert (there.suite, there.horizon, there.action_repeat) == ("toy:reach-blue", 5, 20)
    same = evaluation_env("", trained, 16, False, 1)
    assert (same.suite, same.horizon) == (own, 0)
    more = evaluation_env(own, replace(trained, suite="toy", horizon=7), 16, False, 1)
    assert more.suite == own
    joined = evaluation_env("libero-40", laptop_env("libero-goal"), 64, False, 2)
    assert (joined.horizon, joined.action_repeat, longest_horizon(joined)) == (0, 4, 65)


def test_unions_are_evaluated_as_their_suites_agree() -> None:
    from vla_rl.config import EvalConfig

    joint = evaluation_protocol(EvalConfig(), benchmark_env("libero-40"))
    assert (joint.split, joint.episodes_per_task) == ("all", 50)
    mixed = evaluation_protocol(EvalConfig(), laptop_env("mt5+libero-object"))
    assert (mixed.split, mixed.episodes_per_task) == ("held-out", 20)


def test_a_task_of_an_instruction_is_found_in_its_suite(own: str) -> None:
    assert benchmark(own).task_of_instruction("reach the red disc") == "reach-red"
    assert benchmark(own).task_of_instruction("sing") == "sing"


def test_instructions_have_the_statistics_of_their_suite(own: str) -> None:
    wanted = suite_actions(own)
    assert wanted["reach the red disc"][:3] == ("toy_hand", "toy_hand", 4)
    assert wanted[OwnEnv.instructions[0]][:3] == ("own", "own_robot", OwnEnv.action_dim)
