"""Moving LIBERO's robot hand with its own actions: small displacements towards a pose, asked anew at every step.

Plans are generators of actions, and a skill reads as what it does: `yield from hand.move(...)`, then `hand.close(...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float64

from vla_rl.envs.libero.expert.scene import Scene
from vla_rl.envs.libero.expert.shapes import UP, Matrix, Vector, rotation_vector

Action = Float64[np.ndarray, " 7"]
"""Displacement x, y, z, rotation about x, y, z, gripper: the environment's convention, not yet clipped to [-1, 1]."""
Plan = Iterator[Action]
Condition = Callable[[], bool]

STEP = 0.05
"""Displacement (m) that an action component of 1 asks for."""
TURN = 0.5
"""Rotation (rad) that an action component of 1 asks for."""
OPEN, CLOSED = -1.0, 1.0

_MAX_TURN = 0.5  # of an action's rotation: faster turns drag the hand off its way
# the controller stops up to 1 cm short; so near a goal (m) the error is integrated, up to the limit (m)
_INTEGRAL_RANGE, _INTEGRAL_RATE, _INTEGRAL_LIMIT = 0.03, 0.15, 0.04
_STILL = 4e-4  # m: fingers that move less have closed on something

# the Panda arm: second joint above the base, last joints apart, last-but-one joint behind the grip site
_SHOULDER_HEIGHT, _WRIST_OFFSET, _WRIST_TO_GRIP = 0.333, 0.088, 0.204
_WRIST_RANGE = 2.5  # rad either way of the last joint, with room to its limit of 2.9


class Hand:
    """The hand as a servo. `hold` is the number of simulator steps for which each action will be held."""

    def __init__(self, scene: Scene, hold: int = 1) -> None:
        self.gripper = OPEN
        self._scene = scene
        self._hold = hold
        self._gain = 1.0 / (1.0 + 0.35 * (hold - 1))  # held actions overshoot
        self._integral = np.zeros(3)

    @property
    def position(self) -> Vector:
        return self._scene.hand_position()

    @property
    def rotation(self) -> Matrix:
        return self._scene.hand_rotation()

    # -- what the arm can do -------------------------------------------------------------------------

    def nearest(self, rotation: Matrix) -> Matrix:
        """Of this rotation and the one with the fingers swapped, the nearer one that the last joint can turn to."""

        def cost(option: Matrix) -> float:
            turn = rotation_vector(option @ self.rotation.T)
            wrist = self._scene.joint("robot0_joint7") + float(turn @ self.rotation[:, 2])
            return float(np.linalg.norm(turn)) + 10.0 * max(0.0, abs(wrist) - _WRIST_RANGE)

        return min((rotation, rotation * np.array([-1.0, -1.0, 1.0])), key=cost)

    def stretch(self, position: Vector, approach: Vector) -> float:
        """Distance of wrist and shoulder in a pose. At about 0.72 the arm is straight, and stuck there."""
        shoulder = self._scene.robot_base() + _SHOULDER_HEIGHT * UP
        reach = position - _WRIST_TO_GRIP * approach - shoulder
        sideways = max(float(np.linalg.norm(reach[:2])), 1e-6)
        reach[:2] *= max(0.0, 1.0 - _WRIST_OFFSET / sideways)
        return float(np.linalg.norm(reach))

    # -- servo ---------------------------------------------------------------------------------------

    def _towards(self, position: Vector, rotation: Matrix, speed: float, force: float) -> Action:
        error = position - self.position
        near = np.abs(error) < _INTEGRAL_RANGE
        self._integral = np.clip(
            self._integral + _INTEGRAL_RATE * error * near, -_INTEGRAL_LIMIT, _INTEGRAL_LIMIT
        )
        action = np.empty(7)
        wanted = force * self._gain * error + self._integral
        action[:3] = np.clip(wanted / STEP, -speed, speed)
        turn = self._gain * rotation_vector(rotation @ self.rotation.T) / TURN
        action[3:6] = turn * min(1.0, _MAX_TURN / max(float(np.linalg.norm(turn)), 1e-9))
        action[6] = self.gripper
        return action

    def _calls(self, steps: int) -> int:
        """Actions that cover so many simulator steps."""
        return max(1, -(-steps // self._hold))

    def move(
        self,
        goal: Vector | Callable[[], Vector],
        rotation: Matrix | Callable[[], Matrix],
        *,
        within: float = 0.01,
        angle: float = 0.1,
        limit: int = 80,
        speed: float = 1.0,
        force: float = 1.0,
        until: Condition | None = None,
    ) -> Plan:
        """Go to a pose: until nearer than `within` (m) and `angle` (rad), or `until`, or for `limit` simulator steps.

        A callable goal is followed. `speed` bounds the displacement, 1 being the most an action can say; `force`
        above 1 leans harder on what is in the way.
        """
        self._integral = np.zeros(3)
        for _ in range(self._calls(limit)):
            position = goal() if callable(goal) else goal
            facing = rotation() if callable(rotation) else rotation
            distance = np.linalg.norm(position - self.position)
            turn = np.linalg.norm(rotation_vector(facing @ self.rotation.T))
            if (distance < within and turn < angle) or (until is not None and until()):
                return
            yield self._towards(position, facing, speed, force)

    def settling(self, window: int = 6, moved: float = 0.001) -> Condition:
        """A condition for `move`: the hand, on its way down, has sunk less than `moved` in `window` simulator steps."""
        heights: list[float] = []
        calls = self._calls(window)

        def settled() -> bool:
            heights.append(float(self.position[2]))
            return len(heights) > 2 * calls and heights[-calls] - heights[-1] < moved

        return settled

    def close(self, position: Vector, rotation: Matrix) -> Plan:
        """Close the fingers until they stand still."""
        self.gripper = CLOSED
        self._integral = np.zeros(3)
        openings: list[float] = []
        for call in range(self._calls(26)):
            openings.append(self._scene.finger_opening())
            if call >= self._calls(10) and np.ptp(openings[-1 - self._calls(4) :]) < _STILL:
                return
            yield self._towards(position, rotation, 0.3, 1.0)

    def open(self, steps: int = 5) -> Plan:
        """Open the fingers without moving the hand."""
        self.gripper = OPEN
        self._integral = np.zeros(3)
        position, rotation = self.position, self.rotation
        for _ in range(self._calls(steps)):
            yield self._towards(position, rotation, 0.3, 1.0)

    def rest(self) -> Action:
        """Stay here."""
        return np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, self.gripper])
