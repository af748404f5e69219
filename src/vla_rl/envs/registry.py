"""Which simulator a suite belongs to, and what the rest of the system needs of it.

    benchmark("libero-goal:3").title             # "LIBERO"
    make_envs(EnvConfig(suite="mt5"), 4)         # four environments of one process
    make_expert(env).action()                    # what the scripted expert does now

A new simulator is one more entry here. Imports no simulator until one is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, nearest
from vla_rl.envs.benchmark import Benchmark
from vla_rl.envs.env import Env
from vla_rl.envs.libero import tasks as libero_tasks
from vla_rl.envs.libero.benchmark import LIBERO
from vla_rl.envs.metaworld import tasks as metaworld_tasks
from vla_rl.envs.metaworld.benchmark import METAWORLD
from vla_rl.envs.toy.benchmark import TOY


def is_libero(suite: str) -> bool:
    """Whether a suite, or the single task of one, is LIBERO's."""
    return suite.partition(":")[0] in libero_tasks.SUITES


def benchmark(suite: str) -> Benchmark:
    """The benchmark that `suite` belongs to. ConfigError, with the nearest name, if there is no such suite."""
    name = suite.partition(":")[0]
    if is_libero(suite):
        return LIBERO
    if name == "mt1" or name in metaworld_tasks.SUITES:
        return METAWORLD
    if name == "toy":
        return TOY
    if name.startswith("libero"):
        raise ConfigError(f"unknown LIBERO suite {name!r}.{nearest(name, libero_tasks.SUITES)}")
    known = ["mt1:<task>", *metaworld_tasks.SUITES, *libero_tasks.SUITES]
    raise ConfigError(
        f"unknown suite {suite!r}: expected mt1:<task>, {', '.join(metaworld_tasks.SUITES)} of Meta-World, or "
        f"libero-spatial, -object, -goal, -10, -90.{nearest(suite, known)}"
    )


def task_names(suite: str) -> tuple[str, ...]:
    """The tasks of a suite, in its order. ConfigError for an unknown suite or task, UserError if not installed."""
    return benchmark(suite).task_names(suite)


def make_envs(config: EnvConfig, count: int) -> Sequence[Env]:
    """`count` environments in this process that share one simulator per task."""
    return benchmark(config.suite).make_envs(config, count)
