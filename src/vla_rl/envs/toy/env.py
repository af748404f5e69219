"""The toy benchmark as an environment: nothing to install, the same episode everywhere.

env = ToyEnv(EnvConfig(suite="toy", image_size=32))
env.reset(EpisodeSpec("reach-red", 7))
env.step(ToyExpert(env).action()[None])     # one action, held for `action_repeat` steps
image = env.render()
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, nearest
from vla_rl.envs.env import Snapshot, require_like
from vla_rl.envs.toy.drawing import VIEWS, draw
from vla_rl.envs.toy.tasks import INSTRUCTIONS, suite_tasks
from vla_rl.envs.toy.world import STEP, World
from vla_rl.types import EpisodeSpec

_PLACES = {"hand", "block", "grip"}
"""What of a world's places changes while it is played; a world without a block has none."""


class ToyEnv:
    """One slot that plays any task of `config.suite`."""

    action_dim = 4  # hand right, away, up, and gripper closing, each in [-1, 1]
    proprio_dim = 4

    def __init__(self, config: EnvConfig) -> None:
        self._camera = config.camera or "wrist"
        if self._camera not in VIEWS:
            raise ConfigError(
                f"the toy world has no camera {config.camera!r}.{nearest(config.camera, VIEWS)}"
            )
        if config.wrist_camera and config.wrist_camera not in VIEWS:
            raise ConfigError(
                f"the toy world has no camera {config.wrist_camera!r}.{nearest(config.wrist_camera, VIEWS)}"
            )
        self.tasks = suite_tasks(config.suite)
        self.instructions = tuple(INSTRUCTIONS[task] for task in self.tasks)
        self.instruction = ""
        self.turns = 0
        self.action_repeat = config.action_repeat
        self._config = config
        self._spec: EpisodeSpec | None = None
        self._ended = False
        self._world: World | None = None

    @property
    def world(self) -> World:
        """The episode's state. Privileged: for the scripted expert alone."""
        if self._world is None:
            raise RuntimeError("reset the environment first")
        return self._world

    def reset(self, spec: EpisodeSpec) -> None:
        """Start the episode `spec`. ConfigError if its task is not in the suite."""
        if spec.task not in self.tasks:
            raise ConfigError(
                f"task {spec.task!r} is not in suite {self._config.suite!r}."
                f"{nearest(spec.task, self.tasks)}"
            )
        self._world = World.initial(spec.task, spec.initial_state)
        self._spec, self._ended, self.turns = spec, False, 0
        self.instruction = INSTRUCTIONS[spec.task]

    def step(
        self,
        actions: Float32[np.ndarray, "C 4"],
        on_frame: Callable[[], None] | None = None,
    ) -> tuple[float, bool, bool, int]:
        """Play one turn: each action clipped to [-1, 1] and held for `action_repeat` steps; stops at success.

        `on_frame` is called after every step; `render()` may be called in it. Returns (reward, terminated, truncated,
        steps taken).
        """
        world = self.world
        if self._ended:
            raise RuntimeError("the episode has ended: reset before the next step")
        success, steps = False, 0
        clipped = np.clip(np.asarray(actions, dtype=np.float64).reshape(-1, 4), -1, 1)
        for action in clipped.tolist():
            for _ in range(self.action_repeat):
                success = world.step(action)
                steps += 1
                if on_frame is not None:
                    on_frame()
                if success:
                    break
            if success:
                break
        self.turns += 1
        truncated = not success and self.turns >= self._config.horizon
        self._ended = success or truncated
        return float(success), success, truncated, steps

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """What the camera sees, upright RGB."""
        return draw(self.world, self._camera, self._config.image_size)

    def render_wrist(self) -> UInt8[np.ndarray, "H W 3"]:
        """What the second camera sees (`config.wrist_camera`)."""
        return draw(self.world, self._config.wrist_camera or "wrist", self._config.image_size)

    def proprio(self) -> Float32[np.ndarray, " 4"]:
        """The hand's place (m, 3) and the gripper's opening (0 closed .. 1 open)."""
        world = self.world
        hand = (world.hand.real, world.hand.imag, world.height)
        return np.array([*hand, world.opening], dtype=np.float32)

    def dense_reward(self) -> float:
        """How far the task has come, 0..1. Privileged: it sees where things are."""
        return self.world.dense_reward()

    def snapshot(self) -> Snapshot:
        """The episode so far, as arrays, numbers and strings; `restore` continues it, in any process."""
        world = self.world
        assert self._spec is not None
        places = {
            name: getattr(world, name) for name in _PLACES if getattr(world, name) is not None
        }
        return {
            "task": self._spec.task,
            "initial_state": int(self._spec.initial_state),
            "turns": self.turns,
            "ended": self._ended,
            "height": world.height,
            "opening": world.opening,
            "held": world.held,
            **{name: np.array([place.real, place.imag]) for name, place in places.items()},
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Continue the episode of `snapshot`. ConfigError if its task is not in the suite."""
        self.reset(EpisodeSpec(str(snapshot["task"]), int(snapshot["initial_state"])))
        world = self.world
        require_like(snapshot, self.snapshot())
        for name in _PLACES & snapshot.keys():
            setattr(world, name, complex(*snapshot[name]))
        world.height, world.opening = float(snapshot["height"]), float(snapshot["opening"])
        world.held = bool(snapshot["held"])
        self.turns, self._ended = int(snapshot["turns"]), bool(snapshot["ended"])

    def close(self) -> None:
        """Nothing to free."""


def make_toy_envs(config: EnvConfig, count: int) -> list[ToyEnv]:
    return [ToyEnv(config) for _ in range(count)]


class ToyExpert:
    """Goes straight for it. It sees where things are; it serves demonstrations only."""

    done = False  # it never gives up

    def __init__(self, env: ToyEnv) -> None:
        self._env = env

    def action(self) -> Float32[np.ndarray, " 4"]:
        world, goal, close = self._env.world, self._env.world.hand, -1.0
        if world.disc is not None:
            goal = world.disc
        elif world.held and world.mat is not None:
            goal, close = world.mat - world.grip, 1.0
        elif world.held or world.gap() < 0.02:
            close = 1.0  # stand still while the fingers close
        elif world.block is not None:
            goal = world.block
        move = (goal - world.hand) / (
            STEP * self._env.action_repeat
        )  # 1: as far as one action can go
        move /= max(1.0, abs(move.real), abs(move.imag))
        return np.array([move.real, move.imag, 0.0, close], dtype=np.float32)
