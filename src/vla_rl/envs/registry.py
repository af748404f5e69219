"""The simulators, and which of them a suite belongs to.

    benchmark("libero-goal:3").title             # "LIBERO"
    make_envs(EnvConfig(suite="mt5"), 4)         # four environments of one process
    benchmark("toy").make_expert(env).action()   # what the scripted expert does now

A new simulator is a folder beside the others and an entry in `BENCHMARKS`; a program of yours may add one of its own,
and a package of yours an entry point of the group `vla_rl.benchmarks`, which is loaded when a suite is asked for that
is not known otherwise:

    BENCHMARKS["mine"] = MINE

Imports no simulator until one is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, UserError, nearest
from vla_rl.envs.benchmark import Benchmark
from vla_rl.envs.env import Env
from vla_rl.envs.gymnasium.benchmark import ROBOT as GYMNASIUM_ROBOT
from vla_rl.envs.gymnasium.benchmark import gymnasium_suite
from vla_rl.envs.gymnasium.options import is_gymnasium
from vla_rl.envs.libero.benchmark import LIBERO
from vla_rl.envs.maniskill.benchmark import MANISKILL
from vla_rl.envs.metaworld.benchmark import METAWORLD
from vla_rl.envs.suites import JOINT, is_union, suite_label, suite_parts
from vla_rl.envs.toy.benchmark import TOY
from vla_rl.envs.union import MIXED_ROBOTS, Union, union_benchmark, with_own_clock
from vla_rl.runtime.entry_points import add_entry_points

BENCHMARKS: dict[str, Benchmark] = {
    "metaworld": METAWORLD,
    "libero": LIBERO,
    "toy": TOY,
    "maniskill": MANISKILL,
}
"""Name -> simulator. A new one is a folder and an entry here; a program of yours may add one while it runs."""
ENTRY_POINTS = "vla_rl.benchmarks"
"""The group of entry points in which packages of others name their benchmarks."""


def benchmark(suite: str) -> Benchmark:
    """The benchmark that `suite` belongs to, or that of a union of suites.

    ConfigError, with the nearest name, if there is no such suite, and where a union has a part of which that is true.
    """
    union = _union_of(suite)
    return _benchmark(suite) if union is None else _as_benchmark(union)


def _union_of(suite: str) -> Union | None:
    if not is_union(suite):
        return None
    return _union(suite, tuple((part, _benchmark(part)) for part in suite_parts(suite)))


_union = cache(Union)
_as_benchmark = cache(union_benchmark)


def _benchmark(suite: str) -> Benchmark:
    if is_gymnasium(suite):
        return gymnasium_suite(suite)
    found = _registered(suite)
    broken: dict[str, str] = {}
    if found is None:
        broken = add_installed()
        found = _registered(suite)
    if found is not None:
        return found
    name = suite.partition(":")[0]
    if name in broken:
        raise ConfigError(f"suite {suite!r}: {broken[name]}. Mend or remove that package")
    for key, candidate in BENCHMARKS.items():
        if name.startswith(key):
            raise ConfigError(
                f"unknown {candidate.title} suite {name!r}.{nearest(name, candidate.suites)}"
            )
    known = [*JOINT, *(known for candidate in BENCHMARKS.values() for known in candidate.suites)]
    words = "; ".join(
        f"{candidate.suites_in_words} of {candidate.title}" for candidate in BENCHMARKS.values()
    )
    raise ConfigError(
        f"unknown suite {suite!r}: expected {words}; gym:<id> of Gymnasium.{nearest(suite, known)}"
    )


def _registered(suite: str) -> Benchmark | None:
    return next((one for one in BENCHMARKS.values() if one.plays(suite)), None)


def add_installed() -> dict[str, str]:
    """Add the benchmarks of other packages to `BENCHMARKS`; returns what is broken among them, a line each."""
    return add_entry_points(BENCHMARKS, ENTRY_POINTS, Benchmark, "a vla_rl.Benchmark")


def task_names(suite: str) -> tuple[str, ...]:
    """The tasks of a suite, in its order. ConfigError for an unknown suite or task, UserError if not installed."""
    return benchmark(suite).task_names(suite)


def make_envs(config: EnvConfig, count: int) -> Sequence[Env]:
    """`count` environments in this process that share one simulator per task. ConfigError as `playable`'s."""
    return playable(config).make_envs(as_played(config), count)


def as_played(config: EnvConfig) -> EnvConfig:
    """`config` with a suite's own horizon and `action_repeat` in place of 0; a union's are for `settings_of` to say."""
    if is_union(config.suite):
        return config
    return with_own_clock(config, benchmark(config.suite))


def settings_of(config: EnvConfig, task: str) -> EnvConfig:
    """What a task of `config.suite` is played with: its own suite of a union, that suite's horizon and clock.

    ConfigError for a task that is not in a union.
    """
    union = _union_of(config.suite)
    if union is None:
        return as_played(config)
    part, _ = union.part_of(task)
    return part.settings(config)


def suites_of(config: EnvConfig) -> dict[str, EnvConfig]:
    """The suites that are played, each with its settings; one for what is no union.

    Called as results name them: by their suite, and as they were asked for where two are tasks of one suite.
    """
    union = _union_of(config.suite)
    if union is None:
        return {config.suite: as_played(config)}
    parts = [part.settings(config) for part in union.maker.parts]
    labels = Counter(suite_label(part.suite) for part in parts)
    return {
        part.suite if labels[suite_label(part.suite)] > 1 else suite_label(part.suite): part
        for part in parts
    }


def turn_seconds(config: EnvConfig, task: str, actions: int) -> float:
    """Robot time of a turn of so many actions in a task of `config.suite`."""
    settings = settings_of(config, task)
    return actions * settings.action_repeat / benchmark(settings.suite).simulator_rate


def longest_horizon(config: EnvConfig) -> int:
    """Turns of the longest episode that any task of `config.suite` may have."""
    return max(settings.horizon for settings in suites_of(config).values())


def playable(config: EnvConfig) -> Benchmark:
    """The benchmark of `config.suite`. ConfigError if it stores fewer initial states than `config` counts on."""
    played = benchmark(config.suite)
    stored = played.stored_states
    if stored is not None and config.initial_states > stored:
        raise ConfigError(
            f"env.initial_states may be at most {stored} on {played.title}, which stores so many a task, got "
            f"{config.initial_states}: set it, and env.held_out to fewer"
        )
    return played


def robots() -> dict[str, Benchmark]:
    """The benchmarks by what datasets call their robot, aliases among them."""
    add_installed()
    return {
        name: played
        for played in BENCHMARKS.values()
        for name in (played.robot, *played.robot_aliases)
    }


def normalised_robots() -> set[str]:
    """What demonstrations played here call their robots: their actions span [-1, 1]."""
    return {*robots(), GYMNASIUM_ROBOT, MIXED_ROBOTS}


def no_dense_reward(suite: str) -> UserError:
    """The error of whoever asks a simulator without a shaped reward for it."""
    having = [b.title for b in BENCHMARKS.values() if b.dense_reward_max is not None]
    return UserError(
        f"the simulator of {suite} has no dense reward of its own: expected a suite of {' or '.join(having)}. Take a "
        "process reward model in its place"
    )
