"""One environment over several suites: each episode is played by the simulator of its task, under its settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, nearest
from vla_rl.envs.benchmark import Expert
from vla_rl.envs.env import Env, Snapshot
from vla_rl.envs.suites import shown, suite_label
from vla_rl.types import EpisodeSpec


@dataclass(frozen=True)
class UnionPart:
    """One suite of a union. Values and names of functions alone, so that simulator processes can be told."""

    suite: str
    kind: str
    """Tasks of one name in parts of one kind are the same task."""
    steps: int
    """Simulator steps of an episode, where the configuration leaves them to the suite."""
    action_repeat: int
    """Simulator steps for which an action is held, likewise."""
    make_envs: Callable[[EnvConfig, int], Sequence[Env]]
    make_expert: Callable[[Any], Expert]
    noise_scale: tuple[float, ...]
    dense_reward_max: float | None

    def settings(self, config: EnvConfig) -> EnvConfig:
        """What the suite is played with: the union's settings, with the suite's own in place of zeros."""
        return own_clock(replace(config, suite=self.suite), self.steps, self.action_repeat)


def own_clock(config: EnvConfig, steps: int, action_repeat: int) -> EnvConfig:
    """`config` with a suite's own clock where it says 0: how long an action is held, and turns for so many steps."""
    repeat = config.action_repeat or action_repeat
    turns = config.horizon or -(-steps // (config.action_chunk * repeat))
    return replace(config, action_repeat=repeat, horizon=turns)


def union_names(
    suite: str, parts: Sequence[UnionPart], tasks: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], ...]:
    """What the union `suite` calls the tasks of each part. ConfigError where one task comes twice.

    A name that two suites share is qualified with the suite, as `--env.suite` names one task: `libero-goal:<task>`.
    """
    seen: dict[tuple[str, str], int] = {}
    for number, (part, own) in enumerate(zip(parts, tasks, strict=True)):
        for task in own:
            before = seen.setdefault((part.kind, task), number)
            if before != number:
                raise ConfigError(
                    f"{shown(suite)} has the task {task!r} twice, in {parts[before].suite!r} and in {part.suite!r}: "
                    "name each task once"
                )
    count = Counter(task for own in tasks for task in own)
    return tuple(
        tuple(f"{suite_label(part.suite)}:{task}" if count[task] > 1 else task for task in own)
        for part, own in zip(parts, tasks, strict=True)
    )


class UnionEnv:
    """One slot that plays any task of any of its suites.

    Actions and proprioception are as long as the longest of any suite: a suite with fewer numbers takes the first of an
    action, and fills its proprioception with zeros.
    """

    def __init__(self, parts: Sequence[UnionPart], config: EnvConfig, envs: Sequence[Any]) -> None:
        """envs: one for each part, made with the part's settings."""
        self.action_dim = max(env.action_dim for env in envs)
        self.proprio_dim = max(env.proprio_dim for env in envs)
        names = union_names(config.suite, parts, [env.tasks for env in envs])
        self.tasks = tuple(name for own in names for name in own)
        self.instructions = tuple(text for env in envs for text in env.instructions)
        self._places = {
            name: (number, env.tasks[index])
            for number, (own, env) in enumerate(zip(names, envs, strict=True))
            for index, name in enumerate(own)
        }
        self._parts, self._envs = tuple(parts), tuple(envs)
        self._limits = tuple(part.settings(config).horizon for part in parts)
        self._suite = config.suite
        self._task = ""
        self._number = 0

    @property
    def _env(self) -> Any:
        return self._envs[self._number]

    @property
    def simulator(self) -> Any:
        """The suite's own environment, in which the episode is played; it can do what not every suite can."""
        return self._env

    @property
    def instruction(self) -> str:
        return self._env.instruction

    @property
    def turns(self) -> int:
        return self._env.turns

    @property
    def turn_limit(self) -> int:
        """Turns that the episode being played may take."""
        return self._limits[self._number]

    @property
    def noise_scale(self) -> tuple[float, ...]:
        """For noise on the expert's actions in the episode being played."""
        return self._parts[self._number].noise_scale

    def reset(self, spec: EpisodeSpec) -> None:
        number, task = self._place_of(spec.task)
        self._envs[number].reset(EpisodeSpec(task, spec.initial_state))
        self._task, self._number = spec.task, number

    def _place_of(self, task: str) -> tuple[int, str]:
        if task not in self._places:
            raise ConfigError(
                f"task {task!r} is not in suite {self._suite!r}.{nearest(task, self.tasks)}"
            )
        return self._places[task]

    def step(
        self,
        actions: Float32[np.ndarray, "C A"],
        on_frame: Callable[[], None] | None = None,
    ) -> tuple[float, bool, bool, int]:
        """Play one turn with the first numbers of each action, as many as the suite's robot has."""
        env = self._env
        own = np.asarray(actions)[:, : env.action_dim]
        return env.step(own) if on_frame is None else env.step(own, on_frame=on_frame)

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        return self._env.render()

    def proprio(self) -> Float32[np.ndarray, " P"]:
        own = self._env.proprio()
        return np.pad(own, (0, self.proprio_dim - len(own)))

    def expert(self) -> Expert:
        """Plays the episode that has just started; its actions are as long as the suite's robot has them."""
        return self._parts[self._number].make_expert(self._env)

    def snapshot(self) -> Snapshot:
        return {**self._env.snapshot(), "task": self._task}

    def restore(self, snapshot: Snapshot) -> None:
        name = str(snapshot["task"])
        number, task = self._place_of(name)
        self._envs[number].restore({**snapshot, "task": task})
        self._task, self._number = name, number

    def close(self) -> None:
        for env in self._envs:
            env.close()


class DenseUnionEnv(UnionEnv):
    """A union whose simulators all have a shaped reward of their own."""

    def dense_reward(self) -> float:
        """That of the present state as a share of what the suite's solved tasks give, 0 to about 1."""
        most = self._parts[self._number].dense_reward_max
        assert most is not None
        return self._env.dense_reward() / most


@dataclass(frozen=True)
class UnionMaker:
    """Makes environments of a union. A value: simulator processes receive it, and equal ones are one to a cache."""

    parts: tuple[UnionPart, ...]

    def __call__(self, config: EnvConfig, count: int) -> list[UnionEnv]:
        """`count` environments of one process; those of a part share its simulators."""
        made = [part.make_envs(part.settings(config), count) for part in self.parts]
        return [self.joined(config, envs) for envs in zip(*made, strict=True)]

    def joined(self, config: EnvConfig, envs: Sequence[Any]) -> UnionEnv:
        """One environment of one of each part."""
        dense = all(part.dense_reward_max is not None for part in self.parts)
        return (DenseUnionEnv if dense else UnionEnv)(self.parts, config, envs)


def union_expert(env: UnionEnv) -> Expert:
    """The expert of the suite whose episode has just started."""
    return env.expert()
