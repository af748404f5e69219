"""What a simulator is like that keeps its promises: seen in some episodes of random play, and timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import UserError
from vla_rl.envs.benchmark import Benchmark
from vla_rl.envs.env import Env
from vla_rl.types import EpisodeSpec

_MOST_STEPS = 2000
"""Simulator steps of random play altogether."""


@dataclass(frozen=True)
class CheckReport:
    """What `check_env` has found out. `str()` of it is a line for each."""

    suite: str
    tasks: tuple[str, ...]
    instruction: str
    image_size: int
    one_colour: bool
    """Nothing but one colour was to be seen."""
    action_dim: int
    proprio: tuple[float, float]
    """The least and the greatest number seen."""
    episodes: int
    """Of random play."""
    succeeded: int
    expert: bool | None
    """Whether the expert solves the first initial state; None: there is no expert."""
    snapshots: str
    step_seconds: float
    """Of one simulator step."""
    image_seconds: float
    reset_seconds: float

    @property
    def remarks(self) -> tuple[str, ...]:
        """What breaks no promise and may still not be meant."""
        found = []
        if self.one_colour:
            found.append("the image is of one colour: is the camera where it should be?")
        if not self.succeeded and not self.expert:
            found.append(
                "success was never seen: is it signalled, and can it be had within the horizon?"
            )
        if self.expert is False:
            found.append("the expert has not solved the first initial state within the horizon")
        return tuple(found)

    def __str__(self) -> str:
        expert = {None: "none", True: "solves the first initial state", False: "fails"}[self.expert]
        shown = ", ".join(self.tasks[:3]) + (", ..." if len(self.tasks) > 3 else "")
        lines = [
            f"suite        {self.suite}",
            f"tasks        {len(self.tasks)}: {shown}",
            f"instruction  {self.instruction!r}",
            f"image        {self.image_size} x {self.image_size}, uint8",
            f"action       {self.action_dim} numbers",
            f"proprio      {self.proprio[0]:.3g} to {self.proprio[1]:.3g}",
            f"success      {self.succeeded} of {self.episodes} episodes of random play",
            f"expert       {expert}",
            f"snapshots    {self.snapshots}",
            f"time         step {_ms(self.step_seconds)}, image {_ms(self.image_seconds)}, reset "
            f"{_ms(self.reset_seconds)}",
            *(f"remark       {remark}" for remark in self.remarks),
        ]
        return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def report_of(played: Benchmark, config: EnvConfig, episodes: int) -> CheckReport:
    """Play the suite's first task at random in its own horizon, and look."""
    env = played.make_envs(config, 1)[0]
    try:
        seen = _Random(played, config, env, episodes)
        return CheckReport(
            suite=config.suite,
            tasks=env.tasks,
            instruction=env.instructions[0],
            image_size=config.image_size,
            one_colour=seen.one_colour,
            action_dim=played.action_dim,
            proprio=(float(seen.low), float(seen.high)),
            episodes=seen.played,
            succeeded=seen.succeeded,
            expert=_expert(played, config, env),
            snapshots=_snapshots(env),
            step_seconds=seen.step_seconds / max(1, seen.steps),
            image_seconds=seen.image_seconds / max(1, seen.images),
            reset_seconds=seen.reset_seconds / max(1, seen.played),
        )
    finally:
        env.close()


class _Random:
    """Episodes of random play, and what was seen in them. The first reset builds things and is not timed."""

    played = succeeded = steps = images = 0
    step_seconds = image_seconds = reset_seconds = 0.0
    one_colour = True
    low, high = np.inf, -np.inf

    def __init__(self, played: Benchmark, config: EnvConfig, env: Env, episodes: int) -> None:
        rng = np.random.default_rng(0)
        env.reset(EpisodeSpec(env.tasks[0], 0))
        for number in range(episodes):
            started = time.perf_counter()
            env.reset(EpisodeSpec(env.tasks[0], number))
            self.reset_seconds += time.perf_counter() - started
            self.played += 1
            self._look(env)
            over = False
            while not over and self.steps < _MOST_STEPS:
                shape = (config.action_chunk, played.action_dim)
                action = rng.uniform(-1, 1, shape).astype(np.float32)
                started = time.perf_counter()
                _, terminated, truncated, taken = env.step(action)
                self.step_seconds += time.perf_counter() - started
                self.steps += taken
                self.succeeded += terminated
                over = terminated or truncated
            self._look(env)
            if self.steps >= _MOST_STEPS:
                break

    def _look(self, env: Env) -> None:
        started = time.perf_counter()
        image = env.render()
        self.image_seconds += time.perf_counter() - started
        self.images += 1
        self.one_colour &= bool((image == image[0, 0]).all())
        proprio = env.proprio()
        self.low, self.high = min(self.low, proprio.min()), max(self.high, proprio.max())


def _expert(played: Benchmark, config: EnvConfig, env: Any) -> bool | None:
    """Whether it solves the first initial state; an action is held for a whole turn."""
    env.reset(EpisodeSpec(env.tasks[0], 0))
    try:
        expert = played.make_expert(env)
    except UserError:
        return None
    over = terminated = False
    while not over:
        actions = expert.action()[None]
        if expert.done:
            break
        _, terminated, truncated, _ = env.step(np.repeat(actions, config.action_chunk, axis=0))
        over = terminated or truncated
    return bool(terminated)


def _snapshots(env: Any) -> str:
    """How the environment keeps them, in words."""
    env.reset(EpisodeSpec(env.tasks[0], 0))
    try:
        env.snapshot()
    except UserError as error:
        return f"none: {error}"
    return getattr(env, "snapshots_in_words", "exact")
