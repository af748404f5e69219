"""Several suites as one `Benchmark`: `libero-40`, `mt10+libero-object:0,1,2`.

Task names stay as they are where no two suites share one; where they do, each is qualified with its suite, in the words
by which `--env.suite` names it: `libero-goal:put_the_bowl_on_the_plate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, nearest
from vla_rl.config.policy import Conventions
from vla_rl.envs.benchmark import Benchmark, EvalDefaults, Installation
from vla_rl.envs.suites import suite_label
from vla_rl.envs.union_env import (
    UnionEnv,
    UnionMaker,
    UnionPart,
    own_clock,
    union_expert,
    union_names,
)

T = TypeVar("T")

MIXED_ROBOTS = "several_robots"
"""`robot_type` of demonstrations of several robots; actions of each span [-1, 1]."""


def own_steps(played: Benchmark, suite: str) -> int:
    """Simulator steps that a suite allows an episode when nobody says otherwise."""
    env = played.env_defaults(suite)
    return played.horizon(suite) or env.horizon * env.action_chunk * env.action_repeat


def own_action_repeat(played: Benchmark, suite: str) -> int:
    """Simulator steps for which a small policy's actions are held on a suite when nobody says otherwise."""
    return played.laptop_defaults(suite).action_repeat


def with_own_clock(config: EnvConfig, played: Benchmark) -> EnvConfig:
    """`config` of one suite with the suite's own clock where it says 0."""
    if config.horizon and config.action_repeat:
        return config
    suite = config.suite
    return own_clock(config, own_steps(played, suite), own_action_repeat(played, suite))


@dataclass(frozen=True)
class Union:
    """The suites of one union, each with its benchmark."""

    suite: str
    parts: tuple[tuple[str, Benchmark], ...]

    @cached_property
    def maker(self) -> UnionMaker:
        return UnionMaker(
            tuple(
                UnionPart(
                    suite,
                    played.title if played.tasks_by_name else suite_label(suite),
                    own_steps(played, suite),
                    own_action_repeat(played, suite),
                    played.make_envs,
                    played.make_expert,
                    played.noise_scale,
                    played.dense_reward_max,
                )
                for suite, played in self.parts
            )
        )

    @cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """Of each part's tasks, as the union calls them. ConfigError where one task comes twice."""
        tasks = [played.task_names(suite) for suite, played in self.parts]
        return union_names(self.suite, self.maker.parts, tasks)

    @cached_property
    def place(self) -> dict[str, int]:
        """Task -> number of its part."""
        return {name: number for number, own in enumerate(self.names) for name in own}

    def part_of(self, task: str) -> tuple[UnionPart, Benchmark]:
        """The part that plays a task, and its benchmark. ConfigError for a task that is in none."""
        if task not in self.place:
            raise ConfigError(
                f"task {task!r} is not in suite {self.suite!r}.{nearest(task, self.place)}"
            )
        number = self.place[task]
        return self.maker.parts[number], self.parts[number][1]

    @property
    def benchmarks(self) -> tuple[Benchmark, ...]:
        """Without repetition."""
        return tuple({id(played): played for _, played in self.parts}.values())


def union_benchmark(union: Union) -> Benchmark:
    """The union as a benchmark: what its parts agree on, and the widest of what they do not."""
    kinds = union.benchmarks
    first, titles = kinds[0], " and ".join(played.title for played in kinds)
    wide = max(kinds, key=lambda played: played.action_dim)
    stored = [played.stored_states for played in kinds if played.stored_states is not None]
    same_robot = len({played.robot for played in kinds}) == 1
    return replace(
        first,
        title=titles,
        suites=(),
        suites_in_words="suites with + between them",
        task_names=lambda _: tuple(task for own in union.names for task in own),
        instructions=lambda _: tuple(
            text for part, played in union.parts for text in played.instructions(part)
        ),
        make_envs=union.maker,
        make_video_env=lambda config: _video_env(union, config),
        make_expert=union_expert,
        robot=first.robot if same_robot else MIXED_ROBOTS,
        action_dim=wide.action_dim,
        proprio_dim=max(played.proprio_dim for played in kinds),
        noise_scale=wide.noise_scale,
        env_defaults=lambda suite: _joined(
            suite, [played.env_defaults(part) for part, played in union.parts]
        ),
        laptop_defaults=lambda suite: _joined(
            suite, [played.laptop_defaults(part) for part, played in union.parts]
        ),
        eval_defaults=_agreed([played.eval_defaults for played in kinds], EvalDefaults()),
        horizon=lambda _: None,
        dense_reward_max=(
            1.0 if all(played.dense_reward_max is not None for played in kinds) else None
        ),
        stored_states=min(stored, default=None),
        in_process=all(played.in_process for played in kinds),
        ignores=tuple(
            name for name in first.ignores if all(name in played.ignores for played in kinds)
        ),
        task_of_instruction=lambda text: _task_of(union, text),
        conventions=lambda _: _conventions(union),
        installation=_installation(kinds),
    )


def _joined(suite: str, parts: Sequence[EnvConfig]) -> EnvConfig:
    """One configuration for all parts: what they agree on, the suites' own clocks, and room for the most demanding."""
    first = parts[0]
    repeats = {part.action_repeat for part in parts}
    faces = {part.mesh_faces for part in parts}
    return replace(
        first,
        suite=suite,
        image_size=max(part.image_size for part in parts),
        action_chunk=max(part.action_chunk for part in parts),
        action_repeat=repeats.pop() if len(repeats) == 1 else 0,
        horizon=0,
        num_envs=max(part.num_envs for part in parts),
        initial_states=min(part.initial_states for part in parts),
        held_out=min(part.held_out for part in parts),
        mesh_faces=0 if 0 in faces else max(faces),
        settle_steps=max(part.settle_steps for part in parts),
        step_timeout=max(part.step_timeout for part in parts),
        start_timeout=max(part.start_timeout for part in parts),
    )


def _video_env(union: Union, config: EnvConfig) -> UnionEnv:
    maker = union.maker
    envs = [
        played.make_video_env(part.settings(config))
        for part, (_, played) in zip(maker.parts, union.parts, strict=True)
    ]
    return maker.joined(config, envs)


def _task_of(union: Union, text: str) -> str:
    """The task whose instruction `text` is, as far as the suites can tell; the text itself where none has it."""
    for (suite, played), own in zip(union.parts, union.names, strict=True):
        task = played.task_of_instruction(text)
        tasks = played.task_names(suite)
        if task in tasks:
            return own[tasks.index(task)]
    return text


def _agreed(values: Sequence[T], otherwise: T) -> T:
    return values[0] if all(value == values[0] for value in values) else otherwise


def _conventions(union: Union) -> Conventions:
    """Those that all parts share."""
    each = [played.conventions(suite) for suite, played in union.parts]
    likely = next((one.unnorm_key for one in each if one.unnorm_key), "")
    return replace(
        _agreed([replace(one, unnorm_key="") for one in each], Conventions()), unnorm_key=likely
    )


def _installation(kinds: Sequence[Benchmark]) -> Installation | None:
    """Of all simulators together; `needs` and `doctor` look at each."""
    each = [played.installation for played in kinds if played.installation is not None]
    if not each:
        return None
    packages = dict.fromkeys(name for one in each for name in one.packages)
    return replace(each[0], packages=tuple(packages))
