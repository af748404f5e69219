"""One Meta-World task in this process: model, physics and camera, lent to any number of episodes in turn.

A simulator with its meshes and textures takes some 30 MB, its state some kilobytes. So each process keeps one simulator
per task, and environments load their state into it when it is their turn (`MetaWorldEnv` does the taking turns).

Physics is Meta-World's own model stepped as `SawyerXYZEnv.step` steps it; what is left out (the shaped reward, forces
nobody reads) has no way back into the state. Tests compare whole episodes bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from vla_rl.envs.metaworld.success import SUCCESS
from vla_rl.envs.metaworld.tasks import initial_state_generator
from vla_rl.envs.metaworld.tracing import Witness
from vla_rl.envs.rendering.camera import (
    CORNER2_POSITION,
    Camera,
    CameraSettings,
    Drawing,
    camera_index,
)
from vla_rl.envs.rendering.gl import load_metaworld_classes, load_mujoco, shared_context
from vla_rl.envs.simulator_pool import SimulatorPool
from vla_rl.envs.trace import Moment

WRIST_CAMERA = "gripperPOV"
_MOVED_AT_RESET = ("body_pos", "site_pos")
"""Model arrays that Meta-World's resets write to (a test goes through all arrays of all tasks)."""


@dataclass
class SimulatorState:
    """Everything that tells one episode from another in the same simulator."""

    integration: Float64[np.ndarray, " S"]  # mujoco's mjSTATE_INTEGRATION
    model: tuple[Float64[np.ndarray, "_ 3"], ...]  # the arrays of _MOVED_AT_RESET
    attributes: dict[str, Any]  # Meta-World's Python attributes


class TaskSimulator:
    """The simulator of one task. `owner` is whoever's state is loaded at the moment."""

    def __init__(self, task: str, settings: CameraSettings) -> None:
        mujoco = load_mujoco()
        self.task = task
        self.owner: object | None = None
        self._mujoco = mujoco
        self._env: Any = load_metaworld_classes()[f"{task}-v3"]()
        env = self._env
        self.model: Any = env.model
        self.data: Any = env.data
        # as Meta-World's own goal-observable variants: the expert needs the goal, the policy never sees it
        env._partially_observable = False
        env._set_task_called = True
        env.__dict__.pop("sawyer_observation_space", None)
        space = env.sawyer_observation_space
        self._observation_low, self._observation_high = space.low, space.high
        env.do_simulation = self._simulate
        self._reset_hand = env._reset_hand
        self._solved = SUCCESS.get(task)
        self._witness: Witness | None = None

        self._pristine_model = self._copy_model()
        self._pristine_attributes = dict(env.__dict__)
        if "corner2" in (settings.camera, settings.second):
            env.model.cam_pos[camera_index(env.model, "corner2")] = CORNER2_POSITION
        if settings.second == "wrist":
            settings = replace(settings, second=WRIST_CAMERA)
        self._camera = Camera(env.model, settings, Drawing.of_metaworld(settings))
        self._spec_state = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self._state_size = mujoco.mj_stateSize(env.model, self._spec_state)
        self._positions_valid = False
        # views into the simulator, taken once: each access through mujoco's bindings makes a new array
        self._mocap_position, self._mocap_quaternion = self.data.mocap_pos, self.data.mocap_quat
        self._control, self._frame_skip = self.data.ctrl, env.frame_skip
        self._mocap_low, self._mocap_high = env.mocap_low, env.mocap_high
        self._action_scale = env.action_scale

    # -- state ---------------------------------------------------------------------------------------

    def _copy_model(self) -> tuple[Float64[np.ndarray, "_ 3"], ...]:
        return tuple(getattr(self._env.model, name).copy() for name in _MOVED_AT_RESET)

    def _write_model(self, arrays: tuple[Float64[np.ndarray, "_ 3"], ...]) -> None:
        for name, array in zip(_MOVED_AT_RESET, arrays, strict=True):
            getattr(self.model, name)[:] = array

    def _write_attributes(self, attributes: dict[str, Any]) -> None:
        self._env.__dict__.clear()
        self._env.__dict__.update(attributes)

    def integration_state(self) -> Float64[np.ndarray, " S"]:
        """Positions, velocities, warm start, controls, mocap and time."""
        state = np.empty(self._state_size)
        self._mujoco.mj_getState(self.model, self.data, state, self._spec_state)
        return state

    def write_integration_state(self, state: Float64[np.ndarray, " S"]) -> None:
        self._mujoco.mj_setState(self.model, self.data, state, self._spec_state)
        self._positions_valid = False

    @property
    def attributes(self) -> dict[str, Any]:
        """Meta-World's Python attributes, live."""
        return self._env.__dict__

    def attribute(self, name: str) -> Any:
        """One of them, or what Meta-World's class has by that name; None where there is no such."""
        return getattr(self._env, name, None)

    def save(self) -> SimulatorState:
        return SimulatorState(self.integration_state(), self._copy_model(), dict(self.attributes))

    def load(self, state: SimulatorState) -> None:
        self._write_model(state.model)
        self._write_attributes(state.attributes)
        self.write_integration_state(state.integration)

    # -- episode -------------------------------------------------------------------------------------

    def reset(self, initial_state: int) -> None:
        """Put the numbered initial state, which depends on nothing played before.

        Meta-World resets twice (`reset_model`, clear, `reset_model`): the second run starts with the furniture where
        the first has put it. Of the first run only that matters, so the arm is not moved in it.
        """
        env = self._env
        self._write_model(self._pristine_model)
        self._write_attributes(self._pristine_attributes)
        observation = np.zeros(0)
        for move_arm in (False, True):
            self._mujoco.mj_resetData(self.model, self.data)
            env._reset_hand = self._reset_hand if move_arm else self._leave_hand
            env._get_state_rand_vec = self._draws(initial_state)
            observation = env.reset_model()
        env._prev_obs = observation[:18].copy()
        observation[18:36] = env._prev_obs
        env._last_stable_obs = observation.astype(np.float64)
        self._positions_valid = False

    def _leave_hand(self, steps: int = 50) -> None:
        self._mujoco.mj_forward(self.model, self.data)
        self._env.init_tcp = self._env.tcp_center

    def _draws(self, initial_state: int) -> Callable[[], Float64[np.ndarray, " r"]]:
        """Draws of the random vector. Some tasks draw again while object and goal are too close."""
        generator = initial_state_generator(self.task, initial_state)
        space = self._env._random_reset_space
        return lambda: generator.uniform(space.low, space.high, size=space.low.size)

    def play(
        self,
        actions: Float32[np.ndarray, "C 4"],
        action_repeat: int,
        on_frame: Callable[[], None] | None = None,
    ) -> tuple[bool, int]:
        """Hold each action for `action_repeat` steps; stop at success. Returns (success, steps taken)."""
        env = self._env
        total = len(actions) * action_repeat
        for step in range(total):
            if 0 < step == total - 1 and self._solved is not None:
                env._prev_obs = env._get_curr_obs_combined_no_goal()
            action = actions[step // action_repeat]
            self._advance(action)
            success = self._evaluate(action) if self._solved is None else self._solved(env)
            if on_frame is not None:
                on_frame()
            if success:
                break
        if self._solved is not None:
            self._observe()
        return success, step + 1

    def _advance(self, action: Float32[np.ndarray, " 4"]) -> None:
        """`SawyerXYZEnv.step` up to its observation: the same arithmetic in the same precision."""
        moved = self._mocap_position + action[:3] * self._action_scale
        moved[0] = np.minimum(np.maximum(moved[0], self._mocap_low), self._mocap_high)
        self._mocap_position[:] = moved
        self._mocap_quaternion[:] = _MOCAP_QUATERNION
        self._control[0], self._control[1] = action[3], -action[3]
        self._mujoco.mj_step(self.model, self.data, self._frame_skip)
        # not only for the positions: it also moves the constraint solver's warm start, and so the next step
        self._mujoco.mj_forward(self.model, self.data)
        self._env.curr_path_length += 1
        self._positions_valid = True

    def _simulate(self, control: Any, n_frames: int) -> None:
        """Meta-World's `do_simulation` less the contact forces on bodies, which nothing reads."""
        self.data.ctrl[:] = control
        self._mujoco.mj_step(self.model, self.data, n_frames)

    def _observe(self) -> Float64[np.ndarray, " 39"]:
        env = self._env
        observation = np.clip(env._get_obs(), self._observation_low, self._observation_high)
        env._last_stable_obs = observation
        return observation

    def _evaluate(self, action: Float32[np.ndarray, " 4"]) -> bool:
        _, info = self._env.evaluate_state(self._observe(), action)
        return bool(info["success"])

    @property
    def observation(self) -> Float64[np.ndarray, " 39"]:
        """Meta-World's state observation (privileged: objects and goal)."""
        return self._env._last_stable_obs

    def image(self) -> UInt8[np.ndarray, "H W 3"]:
        """What the camera sees now."""
        self._place_bodies()
        return self._camera.image(self.data)

    def second_image(self) -> UInt8[np.ndarray, "H W 3"]:
        """What the second camera sees now."""
        self._place_bodies()
        return self._camera.second_image(self.data)

    def dense_reward(self, action: Float32[np.ndarray, " 4"]) -> float:
        """Meta-World's shaped reward of the present state after `action`, 0..10. The state stays as it is."""
        self._place_bodies()
        attributes = dict(self.attributes)
        reward, _ = self._env.evaluate_state(self.observation, action)
        self._write_attributes(attributes)
        return float(reward)

    def moment(self) -> Moment:
        """What a trace holds of the present state. The state stays as it is."""
        if self._witness is None:
            self._witness = Witness(self.task, self._env)
        self._place_bodies()
        return self._witness.moment()

    def _place_bodies(self) -> None:
        """Compute where everything is, if only the state is known; the solver's warm start stays as it is."""
        if self._positions_valid:
            return
        warm_start = self.data.qacc_warmstart.copy()
        self._mujoco.mj_forward(self.model, self.data)
        self.data.qacc_warmstart[:] = warm_start
        self._positions_valid = True

    def close(self) -> None:
        self._camera.close()


_MOCAP_QUATERNION = np.array([1.0, 0.0, 1.0, 0.0])


def metaworld_simulators(settings: CameraSettings) -> SimulatorPool[TaskSimulator]:
    """A pool of Meta-World's simulators. UserError at once, with the remedy, if none could be made."""
    load_metaworld_classes()
    shared_context()
    return SimulatorPool(lambda task: TaskSimulator(task, settings))
