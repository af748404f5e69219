"""Meta-World as an environment: any task of a suite, numbered initial states, a picture per turn.

from vla_rl.config import EnvConfig
from vla_rl.envs.metaworld import MetaWorldEnv, expert_action

env = MetaWorldEnv(EnvConfig(suite="mt1:drawer-open"))
env.reset(EpisodeSpec("drawer-open", 7))
env.step(expert_action(env)[None])     # one action, held for `action_repeat` simulator steps
picture = env.render()
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, nearest
from vla_rl.envs.metaworld_tasks import INSTRUCTIONS, suite_tasks
from vla_rl.envs.protocol import Snapshot
from vla_rl.envs.rendering import CameraSettings
from vla_rl.envs.simulator import SimulatorPool, SimulatorState, TaskSimulator
from vla_rl.types import EpisodeSpec

_ATTRIBUTE = "attribute:"


class MetaWorldEnv:
    """One slot that plays any task of `config.suite`.

    Several of them may share one `SimulatorPool` (see `make_metaworld_envs`); their episodes do not mix. `pretty`
    turns on shadows, reflections and smooth edges, for videos; then take `image_size=256, mesh_faces=0`.
    """

    action_dim = 4  # end-effector displacement x, y, z and gripper closing, each in [-1, 1]
    proprio_dim = 4

    def __init__(
        self, config: EnvConfig, *, pretty: bool = False, simulators: SimulatorPool | None = None
    ) -> None:
        self.tasks = suite_tasks(config.suite)
        self.instructions = tuple(INSTRUCTIONS[task] for task in self.tasks)
        self.instruction = ""
        self.turns = 0
        self._config = config
        self._pool = simulators or SimulatorPool(CameraSettings.of(config, pretty))
        self._pool.users += 1
        self._spec: EpisodeSpec | None = None
        self._ended = False
        self._closed = False
        self._simulator: TaskSimulator | None = None
        self._parked: SimulatorState | None = None
        self._reset_attributes: dict[str, Any] = {}
        self._expert: Any = None

    # -- episode -------------------------------------------------------------------------------------

    def reset(self, spec: EpisodeSpec) -> None:
        """Start the episode `spec`: bit-identical whatever was played before, here or elsewhere."""
        if spec.task not in self.tasks:
            raise ConfigError(
                f"task {spec.task!r} is not in suite {self._config.suite!r}."
                f"{nearest(spec.task, self.tasks)}"
            )
        self._leave()
        simulator = self._pool.get(spec.task)
        self._park_owner(simulator)
        simulator.reset(spec.initial_state)
        simulator.owner = self
        self._simulator = simulator
        self._reset_attributes = dict(simulator.attributes)
        self._expert = None
        self._spec, self._ended, self.turns = spec, False, 0
        self.instruction = INSTRUCTIONS[spec.task]

    def step(
        self,
        actions: Float32[np.ndarray, "C 4"],
        on_frame: Callable[[], None] | None = None,
    ) -> tuple[float, bool, bool, int]:
        """Play one turn: each action clipped to [-1, 1] and held for `action_repeat` simulator steps.

        Stops at success. `on_frame` is called after every simulator step; `render()` may be called in it.
        Returns (reward, terminated, truncated, simulator steps taken).
        """
        simulator = self._own()
        if self._ended:
            raise RuntimeError("the episode has ended: reset before the next step")
        clipped = np.clip(np.asarray(actions, dtype=np.float32).reshape(-1, 4), -1, 1)
        success, steps = simulator.play(clipped, self._config.action_repeat, on_frame)
        self.turns += 1
        truncated = not success and self.turns >= self._config.horizon
        self._ended = success or truncated
        return float(success), success, truncated, steps

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The camera's picture, upright RGB."""
        return self._own().picture()

    def proprio(self) -> Float32[np.ndarray, " 4"]:
        """End-effector position (m) and gripper opening (0 closed .. 1 open): what the robot knows of itself."""
        return self._own().observation[:4].astype(np.float32)

    def state_observation(self) -> Float64[np.ndarray, " 39"]:
        """Meta-World's state vector with objects and goal. Privileged: for the scripted expert alone."""
        return self._own().observation.copy()

    # -- snapshots -----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The episode so far, as arrays, numbers and strings; `restore` continues it, in any process."""
        simulator = self._own()
        assert self._spec is not None
        before = self._reset_attributes
        changed = {
            _ATTRIBUTE + name: _plain(name, value)
            for name, value in simulator.attributes.items()
            if name not in before or before[name] is not value
        }
        return {
            "task": self._spec.task,
            "initial_state": int(self._spec.initial_state),
            "turns": self.turns,
            "ended": self._ended,
            "integration": simulator.integration_state(),
            **changed,
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Continue the episode of `snapshot`. Furniture and goal come from resetting its initial state."""
        self.reset(EpisodeSpec(str(snapshot["task"]), int(snapshot["initial_state"])))
        simulator = self._own()
        for key, value in snapshot.items():
            if key.startswith(_ATTRIBUTE):
                copied = value.copy() if isinstance(value, np.ndarray) else value
                simulator.attributes[key.removeprefix(_ATTRIBUTE)] = copied
        simulator.write_integration_state(np.asarray(snapshot["integration"], dtype=np.float64))
        self.turns, self._ended = int(snapshot["turns"]), bool(snapshot["ended"])

    # -- sharing -------------------------------------------------------------------------------------

    def _own(self) -> TaskSimulator:
        """The simulator with this slot's state in it."""
        simulator = self._simulator
        if simulator is None:
            raise RuntimeError("reset the environment first")
        if simulator.owner is not self:
            self._park_owner(simulator)
            assert self._parked is not None
            simulator.load(self._parked)
            simulator.owner, self._parked = self, None
        return simulator

    def _park_owner(self, simulator: TaskSimulator) -> None:
        owner = simulator.owner
        if isinstance(owner, MetaWorldEnv) and owner is not self:
            owner._parked = simulator.save()
        simulator.owner = None

    def _leave(self) -> None:
        if self._simulator is not None and self._simulator.owner is self:
            self._simulator.owner = None
        self._simulator, self._parked = None, None

    def close(self) -> None:
        """Leave the simulators; the last user of a pool frees them."""
        if self._closed:
            return
        self._closed = True
        self._leave()
        self._pool.users -= 1
        if self._pool.users == 0:
            self._pool.close()


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return value
    raise TypeError(f"attribute {name!r} of Meta-World cannot be put in a snapshot: {type(value)}")


def make_metaworld_envs(config: EnvConfig, count: int) -> list[MetaWorldEnv]:
    """`count` environments in this process that share one simulator per task."""
    pool = SimulatorPool(CameraSettings.of(config, pretty=False))
    return [MetaWorldEnv(config, simulators=pool) for _ in range(count)]


def expert_action(env: MetaWorldEnv) -> Float32[np.ndarray, " 4"]:
    """What Meta-World's scripted expert does now. It sees objects and goal; it serves demonstrations only."""
    if env._expert is None:
        from metaworld.policies import ENV_POLICY_MAP

        assert env._spec is not None
        env._expert = ENV_POLICY_MAP[f"{env._spec.task}-v3"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its gains overshoot on purpose; the simulator clips
        action = env._expert.get_action(env.state_observation())
    return np.clip(action, -1, 1).astype(np.float32)
