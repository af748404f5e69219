"""LIBERO as an environment: any task of a suite, its stored initial states, a image per turn.

from vla_rl.config import EnvConfig
from vla_rl.envs.libero.env import LiberoEnv

config = EnvConfig(suite="libero-object", image_size=224, mesh_faces=0, initial_states=50, held_out=10)
env = LiberoEnv(config)
env.reset(EpisodeSpec("pick_up_the_milk_and_place_it_in_the_basket", 7))
env.step(np.zeros((1, 7), np.float32))     # one action, held for `action_repeat` control steps of 50 ms
image = env.render()
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, nearest
from vla_rl.envs.env import Snapshot
from vla_rl.envs.libero.simulator import LiberoSimulator, libero_simulators
from vla_rl.envs.libero.tasks import suite_tasks
from vla_rl.envs.simulator_pool import SimulatorPool, SimulatorUser
from vla_rl.envs.trace import Moment, TracedGoal
from vla_rl.types import EpisodeSpec


class LiberoEnv(SimulatorUser[LiberoSimulator]):
    """One slot that plays any task of `config.suite`.

    Several of them may share one pool of simulators (see `make_libero_envs`); their episodes do not mix. Meshes are
    drawn whole where `config.mesh_faces` is 0: then images and states equal LIBERO's own bit by bit.
    """

    action_dim = 7
    """Displacement along x, y, z (1 is 5 cm), rotation about x, y, z (1 is 0.5 rad), gripper (-1 opens, 1 closes)."""
    proprio_dim = 8

    def __init__(
        self, config: EnvConfig, *, simulators: SimulatorPool[LiberoSimulator] | None = None
    ) -> None:
        tasks = suite_tasks(config.suite)
        super().__init__(simulators or libero_simulators(config))
        self.tasks = tuple(task.name for task in tasks)
        self.instructions = tuple(task.instruction for task in tasks)
        self.instruction = ""
        self.turns = 0
        self._config = config
        self._spec: EpisodeSpec | None = None
        self._ended = False

    @property
    def simulator(self) -> LiberoSimulator:
        """The simulator with this slot's episode, bodies up to date. Privileged: for the scripted expert alone."""
        simulator = self._own()
        simulator.follow()
        return simulator

    # -- episode -------------------------------------------------------------------------------------

    def reset(self, spec: EpisodeSpec) -> None:
        """Start the episode `spec`: bit-identical whatever was played before, here or elsewhere.

        `config.settle_steps` control steps without motion, gripper open, are played and not counted.
        """
        self._start(spec, lambda simulator: simulator.reset(spec.initial_state))

    def _start(self, spec: EpisodeSpec, put: Callable[[LiberoSimulator], None]) -> None:
        """Take the simulator of the episode's task, in the state that `put` leaves it in."""
        if spec.task not in self.tasks:
            raise ConfigError(
                f"task {spec.task!r} is not in suite {self._config.suite!r}."
                f"{nearest(spec.task, self.tasks)}"
            )
        simulator = self._move_to(spec.task)
        put(simulator)
        self._take(simulator)
        self._spec, self._ended, self.turns = spec, False, 0
        self.instruction = self.instructions[self.tasks.index(spec.task)]

    def step(
        self,
        actions: Float32[np.ndarray, "C 7"],
        on_frame: Callable[[], None] | None = None,
    ) -> tuple[float, bool, bool, int]:
        """Play one turn: each action clipped to [-1, 1] and held for `action_repeat` control steps.

        Stops at success. `on_frame` is called after every control step; `render()` may be called in it.
        Returns (reward, terminated, truncated, control steps taken).
        """
        simulator = self._own()
        if self._ended:
            raise RuntimeError("the episode has ended: reset before the next step")
        clipped = np.clip(np.asarray(actions, dtype=np.float64).reshape(-1, 7), -1, 1)
        success, steps = simulator.play(clipped, self._config.action_repeat, on_frame)
        self.turns += 1
        truncated = not success and self.turns >= self._config.horizon
        self._ended = success or truncated
        return float(success), success, truncated, steps

    def render(self) -> UInt8[np.ndarray, "H W 3"]:
        """LIBERO's image turned by 180 degrees, as OpenVLA and other published policies see it: upright, mirrored."""
        return self._own().image()

    def proprio(self) -> Float32[np.ndarray, " 8"]:
        """End-effector position (m, 3), its rotation as axis times angle (rad, 3), both finger joints (m, 2).

        As `robot0_eef_pos`, `robot0_eef_quat` and `robot0_gripper_qpos` of LIBERO's observation.
        """
        return self._own().proprio()

    def traced_goals(self) -> tuple[TracedGoal, ...]:
        """What the episode being played is about; see `envs.trace`."""
        return self._own().witness.goals

    def moment(self) -> Moment:
        """What happens to the objects now, see `envs.trace`. Privileged: it sees objects and goals."""
        return self._own().moment()

    # -- snapshots -----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The episode so far, as arrays, numbers and strings; `restore` continues it, in any process."""
        simulator = self._own()
        assert self._spec is not None
        return {
            "task": self._spec.task,
            "initial_state": int(self._spec.initial_state),
            "turns": self.turns,
            "ended": self._ended,
            **simulator.save().arrays(),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Continue the episode of `snapshot`. ConfigError if its task is not in the suite."""
        spec = EpisodeSpec(str(snapshot["task"]), int(snapshot["initial_state"]))
        self._start(spec, lambda simulator: simulator.load(simulator.save().replaced(snapshot)))
        self.turns, self._ended = int(snapshot["turns"]), bool(snapshot["ended"])


def make_libero_envs(config: EnvConfig, count: int) -> list[LiberoEnv]:
    """`count` environments in this process that share one simulator per task.

    The first task's simulator is built at once: compilers, caches and light meshes are then ready, and what is missing
    is reported before the first episode.
    """
    pool = libero_simulators(config)
    pool.get(suite_tasks(config.suite)[0].name)
    return [LiberoEnv(config, simulators=pool) for _ in range(count)]
