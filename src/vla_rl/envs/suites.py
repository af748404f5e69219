"""Which simulator a suite belongs to, and what the rest of the system needs of it.

    benchmark("libero-goal:3").title             # "LIBERO"
    make_envs(EnvConfig(suite="mt5"), 4)         # four environments of one process
    make_expert(env).action()                    # what the scripted expert does now

A new simulator is one more entry here. Imports no simulator until one is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, nearest
from vla_rl.envs import libero_tasks, metaworld_tasks
from vla_rl.envs.libero import LiberoEnv, make_libero_envs
from vla_rl.envs.libero_expert import NOISE_SCALE, LiberoExpert
from vla_rl.envs.metaworld import MetaWorldEnv, expert_action, make_metaworld_envs
from vla_rl.envs.protocol import Env


class Expert(Protocol):
    """Plays the episode that its environment has just started."""

    done: bool  # it has given up, or is finished; the environment says which

    def action(self) -> Float32[np.ndarray, " A"]: ...


@dataclass(frozen=True)
class Benchmark:
    """One simulator with its suites."""

    title: str
    robot: str  # `robot_type` of demonstrations made here; their actions span [-1, 1] by definition
    simulator_rate: int  # simulator steps of one second of robot time
    frame_every: int  # simulator steps between two frames of a video
    action_dim: int
    proprio_dim: int
    noise_scale: tuple[float, ...]  # of each action component, for noise on an expert's actions
    task_names: Callable[[str], tuple[str, ...]]  # of a suite
    make_envs: Callable[[EnvConfig, int], Sequence[Env]]
    make_studio: Callable[[EnvConfig], Any]  # the same simulation, drawn for people
    make_expert: Callable[[Any], Expert]


class _MetaWorldExpert:
    """Meta-World's scripted policies. They never stop by themselves."""

    done = False

    def __init__(self, env: MetaWorldEnv) -> None:
        self._env = env

    def action(self) -> Float32[np.ndarray, " 4"]:
        return expert_action(self._env)


METAWORLD = Benchmark(
    title="Meta-World",
    robot="metaworld_sawyer",
    simulator_rate=80,  # 5 physics steps of 2.5 ms each
    frame_every=2,
    action_dim=MetaWorldEnv.action_dim,
    proprio_dim=MetaWorldEnv.proprio_dim,
    noise_scale=(1.0, 1.0, 1.0, 1.0),
    task_names=metaworld_tasks.suite_tasks,
    make_envs=make_metaworld_envs,
    make_studio=lambda config: MetaWorldEnv(replace(config, mesh_faces=0), pretty=True),
    make_expert=_MetaWorldExpert,
)

LIBERO = Benchmark(
    title="LIBERO",
    robot="libero_panda",
    simulator_rate=20,
    frame_every=1,
    action_dim=LiberoEnv.action_dim,
    proprio_dim=LiberoEnv.proprio_dim,
    noise_scale=NOISE_SCALE,
    task_names=lambda suite: tuple(task.name for task in libero_tasks.suite_tasks(suite)),
    make_envs=make_libero_envs,
    make_studio=lambda config: LiberoEnv(replace(config, mesh_faces=0)),
    make_expert=LiberoExpert,
)


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
