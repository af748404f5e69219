"""ManiSkill as an environment: any task of a suite, its seeds as numbered initial states, an image per turn.

from vla_rl.config import EnvConfig
from vla_rl.envs.maniskill.env import ManiSkillEnv

env = ManiSkillEnv(EnvConfig(suite="maniskill:PushCube-v1", action_repeat=1))
env.reset(EpisodeSpec("PushCube-v1", 7))   # what ManiSkill's reset(seed=7) begins
env.step(np.zeros((1, 7), np.float32))     # one action, held for `action_repeat` control steps of 50 ms
image = env.render()
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, UserError, nearest
from vla_rl.envs.env import Snapshot
from vla_rl.envs.maniskill.simulator import ACTION_DIM, CAMERA, PROPRIO_DIM, ManiSkillSimulator
from vla_rl.envs.maniskill.tasks import TASKS, suite_tasks
from vla_rl.types import EpisodeSpec

_ACTIONS = "actions"


class ManiSkillEnv:
    """One slot that plays any task of `config.suite`, in a scene of its own.

    It keeps the scene of the task that it plays; another task takes its place. `drawn=False` has no images and needs
    no Vulkan driver.
    """

    action_dim, proprio_dim = ACTION_DIM, PROPRIO_DIM
    snapshots_in_words = "exact, by playing an episode again from its seed"

    def __init__(self, config: EnvConfig, *, drawn: bool = True) -> None:
        self.tasks = suite_tasks(config.suite)
        self.instructions = tuple(TASKS[task].instruction for task in self.tasks)
        self.instruction, self.turns = "", 0
        self._config, self._drawn = config, drawn
        self._scene: ManiSkillSimulator | None = None
        self._spec: EpisodeSpec | None = None
        self._played: list[Float32[np.ndarray, " 7"]] = []  # of the episode, one a control step
        self._ended = False
        self._move_to(self.tasks[0])  # so that what is missing is said before the first episode

    def _move_to(self, task: str) -> ManiSkillSimulator:
        """The scene of `task`."""
        if self._scene is None or self._scene.task != task:
            self.close()
            self._scene = ManiSkillSimulator(
                task, self._config.image_size, self._config.camera or CAMERA, drawn=self._drawn
            )
        return self._scene

    @property
    def simulator(self) -> ManiSkillSimulator:
        """With the episode in it. Privileged: it knows objects and goals."""
        if self._spec is None or self._scene is None:
            raise RuntimeError("reset the environment first")
        return self._scene

    # -- episode -------------------------------------------------------------------------------------

    def reset(self, spec: EpisodeSpec) -> None:
        """Start the episode of ManiSkill's seed `spec.initial_state`. ConfigError if its task is not in the suite."""
        if spec.task not in self.tasks:
            raise ConfigError(
                f"task {spec.task!r} is not in suite {self._config.suite!r}.{nearest(spec.task, self.tasks)}"
            )
        if spec.initial_state < 0:
            raise ConfigError(f"an initial state is numbered from 0, got {spec.initial_state}")
        self._move_to(spec.task).reset(int(spec.initial_state))
        self._spec, self._played, self._ended, self.turns = spec, [], False, 0
        self.instruction = TASKS[spec.task].instruction

    def step(
        self,
        actions: Float32[np.ndarray, "C 7"],
        on_frame: Callable[[], None] | None = None,
    ) -> tuple[float, bool, bool, int]:
        """Play one turn: each action clipped to [-1, 1] and held for `action_repeat` control steps; stops at success.

        `on_frame` is called after every control step; `render()` may be called in it. Returns (reward, terminated,
        truncated, control steps taken).
        """
        simulator = self.simulator
        if self._ended:
            raise RuntimeError("the episode has ended: reset before the next step")
        success, steps = False, 0
        clipped = np.clip(np.asarray(actions, np.float32).reshape(-1, ACTION_DIM), -1, 1)
        for action in np.repeat(clipped, self._config.action_repeat, axis=0):
            success = simulator.step(action)
            self._played.append(action.copy())
            steps += 1
            if on_frame is not None:
                on_frame()
            if success:
                break
        self.turns += 1
        truncated = not success and self.turns >= self._config.horizon
        self._ended = success or truncated
        return float(success), success, truncated, steps

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The camera's image, upright RGB."""
        return self.simulator.image()

    def proprio(self) -> Float32[np.ndarray, " 12"]:
        """The hand's position (m, 3), the arm's joints (rad, 7), the fingers' (m, 2)."""
        return self.simulator.proprio()

    def dense_reward(self) -> float:
        """ManiSkill's shaped reward of the present state, 0 to 1. Privileged: it sees objects and goal."""
        return self.simulator.dense_reward()

    # -- snapshots -----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The episode so far: its actions, and ManiSkill's state, by which a restored episode is checked."""
        simulator = self.simulator
        assert self._spec is not None
        return {
            "task": self._spec.task,
            "initial_state": int(self._spec.initial_state),
            "turns": self.turns,
            "ended": self._ended,
            _ACTIONS: np.array(self._played, np.float32).reshape(-1, ACTION_DIM),
            **simulator.save(),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Continue the episode of `snapshot`: its actions are played again from its seed.

        ManiSkill's state alone is not enough: contacts and warm starts of the solver are not in it, and an episode that
        is continued from it goes on a little differently. ConfigError if the task is not in the suite, UserError for a
        snapshot of something else, or one that this version of ManiSkill plays differently.
        """
        actions = np.asarray(snapshot.get(_ACTIONS, ()))
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or actions.dtype.kind != "f":
            raise UserError(
                f"a snapshot of ManiSkill: expected {_ACTIONS} of shape (steps, {ACTION_DIM}), got {actions.dtype} of "
                f"shape {actions.shape}: it is of another simulator"
            )
        self.reset(EpisodeSpec(str(snapshot["task"]), int(snapshot["initial_state"])))
        simulator = self.simulator
        for action in actions.astype(np.float32):
            simulator.step(action)
            self._played.append(action.copy())
        simulator.require_state(snapshot)
        self.turns, self._ended = int(snapshot["turns"]), bool(snapshot["ended"])

    def close(self) -> None:
        """Free the scene."""
        if self._scene is not None:
            self._scene.close()
        self._scene, self._spec = None, None


def make_maniskill_envs(config: EnvConfig, count: int) -> list[ManiSkillEnv]:
    """`count` environments in this process, each with a scene of its own."""
    return [ManiSkillEnv(config) for _ in range(count)]
