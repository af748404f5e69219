"""Meta-World as an environment: any task of a suite, numbered initial states, a image per turn.

from vla_rl.config import EnvConfig
from vla_rl.envs.metaworld.env import MetaWorldEnv, expert_action

env = MetaWorldEnv(EnvConfig(suite="mt1:drawer-open"))
env.reset(EpisodeSpec("drawer-open", 7))
env.step(expert_action(env)[None])     # one action, held for `action_repeat` simulator steps
image = env.render()
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, nearest
from vla_rl.envs.env import Snapshot, require_like
from vla_rl.envs.metaworld.simulator import SimulatorState, TaskSimulator, metaworld_simulators
from vla_rl.envs.metaworld.tasks import INSTRUCTIONS, suite_tasks
from vla_rl.envs.metaworld.tracing import traced_goal
from vla_rl.envs.rendering.camera import CameraSettings
from vla_rl.envs.simulator_pool import SimulatorPool, SimulatorUser
from vla_rl.envs.trace import Moment, TracedGoal
from vla_rl.types import EpisodeSpec

_ATTRIBUTE = "attribute:"


class MetaWorldEnv(SimulatorUser[TaskSimulator]):
    """One slot that plays any task of `config.suite`.

    Several of them may share one `SimulatorPool` (see `make_metaworld_envs`); their episodes do not mix. `pretty`
    turns on shadows, reflections and smooth edges, for videos; then take `image_size=256, mesh_faces=0`.
    """

    action_dim = 4  # end-effector displacement x, y, z and gripper closing, each in [-1, 1]
    proprio_dim = 4

    def __init__(
        self,
        config: EnvConfig,
        *,
        pretty: bool = False,
        simulators: SimulatorPool[TaskSimulator] | None = None,
    ) -> None:
        settings = CameraSettings.of(config, pretty)
        self.tasks = suite_tasks(config.suite)
        super().__init__(simulators or metaworld_simulators(settings))
        self.instructions = tuple(INSTRUCTIONS[task] for task in self.tasks)
        self.instruction = ""
        self.turns = 0
        self._config = config
        self._spec: EpisodeSpec | None = None
        self._ended = False
        self._start: SimulatorState | None = None  # of the episode being played
        self._last_action: Float32[np.ndarray, " 4"] | None = None
        self._expert: Any = None

    # -- episode -------------------------------------------------------------------------------------

    def reset(self, spec: EpisodeSpec) -> None:
        """Start the episode `spec`: bit-identical whatever was played before, here or elsewhere."""
        if spec.task not in self.tasks:
            raise ConfigError(
                f"task {spec.task!r} is not in suite {self._config.suite!r}."
                f"{nearest(spec.task, self.tasks)}"
            )
        simulator = self._move_to(spec.task)
        simulator.reset(spec.initial_state)
        self._take(simulator)
        self._start = simulator.save()
        self._expert = self._last_action = None
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
        self._last_action = clipped[(steps - 1) // self._config.action_repeat]
        truncated = not success and self.turns >= self._config.horizon
        self._ended = success or truncated
        return float(success), success, truncated, steps

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """The camera's image, upright RGB."""
        return self._own().image()

    def render_wrist(self) -> UInt8[np.ndarray, "H W 3"]:
        """The second camera's image (`config.wrist_camera`)."""
        return self._own().second_image()

    def proprio(self) -> Float32[np.ndarray, " 4"]:
        """End-effector position (m) and gripper opening (0 closed .. 1 open): what the robot knows of itself."""
        return self._own().observation[:4].astype(np.float32)

    def state_observation(self) -> Float64[np.ndarray, " 39"]:
        """Meta-World's state vector with objects and goal. Privileged: for the scripted expert alone."""
        return self._own().observation.copy()

    def dense_reward(self) -> float:
        """Meta-World's shaped reward of the present state, 0..10. Privileged: it sees objects and goal."""
        if self._last_action is None:
            raise RuntimeError(
                "the dense reward is of a turn: play one since the last reset or restore"
            )
        return self._own().dense_reward(self._last_action)

    def traced_goals(self) -> tuple[TracedGoal, ...]:
        """What the episode being played is about; see `envs.trace`."""
        return (traced_goal(self._own().task),)

    def moment(self) -> Moment:
        """What happens to the object now, see `envs.trace`. Privileged: it sees objects and goal."""
        return self._own().moment()

    # -- snapshots -----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The episode so far, as arrays, numbers and strings; `restore` continues it, in any process."""
        simulator = self._own()
        assert self._spec is not None
        assert self._start is not None
        before = self._start.attributes
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
        spec = EpisodeSpec(str(snapshot["task"]), int(snapshot["initial_state"]))
        if spec == self._spec and self._start is not None:
            # another moment of the episode being played: what its reset left behind is at hand
            simulator = self._move_to(spec.task)
            simulator.load(self._start)
            self._take(simulator)
            self._expert = self._last_action = None
        else:
            self.reset(spec)
        simulator = self._own()
        self._require_own(snapshot, simulator)
        for key, value in snapshot.items():
            if key.startswith(_ATTRIBUTE):
                copied = value.copy() if isinstance(value, np.ndarray) else value
                simulator.attributes[key.removeprefix(_ATTRIBUTE)] = copied
        simulator.write_integration_state(np.asarray(snapshot["integration"], dtype=np.float64))
        self.turns, self._ended = int(snapshot["turns"]), bool(snapshot["ended"])

    def _require_own(self, snapshot: Snapshot, simulator: TaskSimulator) -> None:
        """UserError unless the snapshot is one of this task's simulator."""
        there = {
            key: value
            for key in snapshot
            if key.startswith(_ATTRIBUTE)
            and (value := simulator.attribute(key.removeprefix(_ATTRIBUTE))) is not None
        }
        require_like(snapshot, {"integration": simulator.integration_state(), **there})


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return value
    raise TypeError(f"attribute {name!r} of Meta-World cannot be put in a snapshot: {type(value)}")


def make_metaworld_envs(config: EnvConfig, count: int) -> list[MetaWorldEnv]:
    """`count` environments in this process that share one simulator per task."""
    pool = metaworld_simulators(CameraSettings.of(config, pretty=False))
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
