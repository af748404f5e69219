"""LIBERO's control loop: operational-space control of the Panda at 500 Hz, as robosuite 1.4 computes it.

The same numbers to the last bit as `MujocoEnv.step` with robosuite's OSC_POSE controller, at about half its cost. What
is saved: looking things up by name, observations at every physics step, and computing positions and velocities three
times per physics step where nothing that they depend on has changed in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64

from vla_rl.envs.rendering.gl import load_mujoco


@dataclass
class ControlState:
    """What the controller remembers from one control step to the next. Arrays are replaced, never written to."""

    goal_position: Float64[np.ndarray, " 3"]
    goal_rotation: Float64[np.ndarray, "3 3"]
    gripper: Float64[np.ndarray, " 2"]  # commanded opening of the fingers, -1 .. 1, slewed
    first: bool  # no step since the reset: the controller still holds the arm as it was then
    seen: Float64[np.ndarray, " q"]  # generalised positions that the last observation shows
    seen_fingers: Float64[np.ndarray, " 2"]  # finger joints in the last observation


_SEEN_SUBSTEP = 23
"""LIBERO's observations are taken in this one of a step's 25 physics steps (counted from 0), because robosuite counts
the two that reset and initial state force. Bodies are seen where they were before it, joints as they are after it."""


@dataclass
class _Arm:
    """The arm as the controller sees it."""

    position: Float64[np.ndarray, " 3"]
    rotation: Float64[np.ndarray, "3 3"]
    linear_velocity: Float64[np.ndarray, " 3"]
    angular_velocity: Float64[np.ndarray, " 3"]
    joints: Float64[np.ndarray, " 7"]
    joint_velocities: Float64[np.ndarray, " 7"]
    jacobian: Float64[np.ndarray, "6 7"]
    linear_jacobian: Float64[np.ndarray, "3 7"]
    angular_jacobian: Float64[np.ndarray, "3 7"]
    mass: Float64[np.ndarray, "7 7"]


class OperationalSpaceControl:
    """Moves the arm of one robosuite environment by relative poses of the end effector."""

    def __init__(self, robosuite_env: Any) -> None:
        """Take over from robosuite right after its `reset`."""
        from robosuite.utils import control_utils

        self._mujoco = load_mujoco()
        self._functions = control_utils
        self._env = robosuite_env
        robot = robosuite_env.robots[0]
        controller, sim = robot.controller, robosuite_env.sim
        self.model: Any = sim.model._model
        self.data: Any = sim.data._data
        self._controller = controller
        self.substeps = int(robosuite_env.control_timestep / robosuite_env.model_timestep)
        if self.model.opt.integrator == self._mujoco.mjtIntegrator.mjINT_RK4:
            raise RuntimeError("LIBERO's models are not integrated by Runge-Kutta")

        self._site = sim.model.site_name2id(controller.eef_name)
        self._positions = _as_slice(controller.qpos_index)
        self._velocities = _as_slice(controller.qvel_index)
        self._actuators = np.array(robot._ref_joint_actuator_indexes)
        self._torque_low, self._torque_high = robot.torque_limits
        self._fingers = np.array([sim.model.actuator_name2id(n) for n in robot.gripper.actuators])
        limits = self.model.actuator_ctrlrange[self._fingers]
        self._finger_joints = np.array(robot._ref_gripper_joint_pos_indexes)
        self._finger_bias = 0.5 * (limits[:, 1] + limits[:, 0])
        self._finger_weight = 0.5 * (limits[:, 1] - limits[:, 0])
        self._finger_speed = np.array([-1.0, 1.0]) * robot.gripper.speed
        self._jacp, self._jacr = np.zeros((2, 3, self.model.nv))
        self._full_mass = np.zeros((self.model.nv, self.model.nv))
        # views into the simulator, taken once: each access through mujoco's bindings costs time
        data = self.data
        self._qpos, self._qvel, self._ctrl, self._bias = (
            data.qpos,
            data.qvel,
            data.ctrl,
            data.qfrc_bias,
        )
        self._site_position = data.site_xpos[self._site]
        self._site_rotation = data.site_xmat[self._site].reshape(3, 3)

        self._arm_at_reset = _Arm(
            controller.ee_pos, controller.ee_ori_mat, controller.ee_pos_vel, controller.ee_ori_vel,
            controller.joint_pos, controller.joint_vel,
            controller.J_full, controller.J_pos, controller.J_ori, controller.mass_matrix,
        )  # fmt: skip
        assert not controller.new_update, "robosuite's controller has moved since its reset"
        self.state = ControlState(
            np.array(controller.goal_pos), np.array(controller.goal_ori),
            np.zeros(len(self._fingers)), True,
            self.data.qpos.copy(), self.data.qpos[self._finger_joints],
        )  # fmt: skip

    def see_now(self) -> None:
        """The next observation shows this very state, as after a reset."""
        self.state.seen = self.data.qpos.copy()
        self.state.seen_fingers = self.data.qpos[self._finger_joints]

    def step(self, action: Float64[np.ndarray, " 7"]) -> None:
        """One control step of 50 ms: six numbers of relative pose and one for the gripper, each in [-1, 1]."""
        mujoco, model, data = self._mujoco, self.model, self.data
        state = self.state = replace(self.state)
        gripper_change = self._finger_speed * np.sign(action[6:])
        for substep in range(self.substeps):
            mujoco.mj_forward(model, data)
            if state.first:
                arm, state.first = self._arm_at_reset, False
            else:
                # robosuite calls mj_forward again here. All stages before the solver would give what they gave
                mujoco.mj_fwdConstraint(model, data)
                arm = self._read_arm()
            if substep == 0:
                self._set_goal(action[:6], arm)
            torques = _within(self._torques(arm), self._torque_low, self._torque_high)
            state.gripper = _within(state.gripper + gripper_change, -1.0, 1.0)
            self._ctrl[self._fingers] = self._finger_bias + self._finger_weight * state.gripper
            self._ctrl[self._actuators] = torques
            if substep == _SEEN_SUBSTEP:
                state.seen = self._qpos.copy()
            mujoco.mj_step2(model, data)  # mj_step's second half: forces, solver, integration
            if substep == _SEEN_SUBSTEP:
                state.seen_fingers = self._qpos[self._finger_joints]

    def _read_arm(self) -> _Arm:
        mujoco, model, data = self._mujoco, self.model, self.data
        mujoco.mj_jacSite(model, data, self._jacp, self._jacr, self._site)
        mujoco.mj_fullM(model, self._full_mass, data.qM)
        qvel, columns = self._qvel, self._velocities
        # column by column in memory, as robosuite's indexing leaves them: the order decides the last bits of products
        jacobian = np.empty((6, 7), order="F")
        jacobian[:3], jacobian[3:] = self._jacp[:, columns], self._jacr[:, columns]
        return _Arm(
            self._site_position.copy(),
            self._site_rotation.copy(),
            np.dot(self._jacp, qvel),
            np.dot(self._jacr, qvel),
            self._qpos[self._positions].copy(),
            qvel[columns].copy(),
            jacobian,
            self._jacp[:, columns].copy(order="F"),
            self._jacr[:, columns].copy(order="F"),
            self._full_mass[columns, columns].copy(order="F"),
        )

    def _set_goal(self, action: Float64[np.ndarray, " 6"], arm: _Arm) -> None:
        state, controller = self.state, self._controller
        delta = controller.scale_action(action)
        if np.any(delta[3:] != 0.0):
            state.goal_rotation = self._functions.set_goal_orientation(delta[3:], arm.rotation)
        state.goal_position = arm.position + delta[:3]

    def _torques(self, arm: _Arm) -> Float64[np.ndarray, " 7"]:
        """`OperationalSpaceController.run_controller`: the same operations in the same order."""
        controller, functions = self._controller, self._functions
        kp, kd = controller.kp, controller.kd
        rotation_error = functions.orientation_error(self.state.goal_rotation, arm.rotation)
        force = np.multiply(self.state.goal_position - arm.position, kp[0:3]) + np.multiply(
            -arm.linear_velocity, kd[0:3]
        )
        torque = np.multiply(rotation_error, kp[3:6]) + np.multiply(-arm.angular_velocity, kd[3:6])
        _, lambda_position, lambda_rotation, nullspace = functions.opspace_matrices(
            arm.mass, arm.jacobian, arm.linear_jacobian, arm.angular_jacobian
        )
        wrench = np.concatenate([np.dot(lambda_position, force), np.dot(lambda_rotation, torque)])
        torques = np.dot(arm.jacobian.T, wrench) + self._bias[self._velocities]
        torques += functions.nullspace_torques(
            arm.mass, nullspace, controller.initial_joint, arm.joints, arm.joint_velocities
        )
        return torques


def _as_slice(indices: Sequence[int]) -> slice:
    """Indices that follow each other, as those of one arm's joints do."""
    first, last = int(indices[0]), int(indices[-1])
    assert list(indices) == list(range(first, last + 1)), f"not in a row: {indices}"
    return slice(first, last + 1)


def _within(values: Float64[np.ndarray, " n"], low: Any, high: Any) -> Float64[np.ndarray, " n"]:
    """`np.clip`, which takes three times as long for so few numbers."""
    return np.minimum(np.maximum(values, low), high)
