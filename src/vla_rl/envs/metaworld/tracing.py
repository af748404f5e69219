"""What happens to the object of a Meta-World episode: contacts, gripper, and how far it still has to go."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_rl.envs.metaworld.success import SUCCESS
from vla_rl.envs.trace import Contacts, GoalKind, GoalMoment, Moment, TracedGoal

REACH = ("reach", "reach-wall", "hand-insert")
GRASP = (
    "assembly", "basketball", "bin-picking", "box-close", "disassemble", "hammer", "peg-insert-side", "peg-unplug-side",
    "pick-out-of-hole", "pick-place", "pick-place-wall", "shelf-place", "stick-pull", "stick-push",
)  # fmt: skip
"""Tasks that cannot be done without lifting something. In all others something is pushed, pulled or pressed."""

_ROBOT = "base"
_FINGERS = ("rightclaw", "leftclaw")


def traced_goal(task: str) -> TracedGoal:
    """The one goal of a task. Its radius is known for the tasks of MT10."""
    kind: GoalKind = "reach" if task in REACH else "grasp" if task in GRASP else "move"
    known = SUCCESS.get(task)
    return TracedGoal(task, kind, None if known is None else known.radius)


class Witness:
    """Reads moments from the simulator of one task, whose bodies must be where the joints are."""

    def __init__(self, task: str, env: Any) -> None:
        self.goal = traced_goal(task)
        self._env, self._model, self._data = env, env.model, env.data
        self._distance = SUCCESS[task].distance if task in SUCCESS else self._asked_distance
        self._contacts = Contacts(self._model)
        names = [self._model.body(body).name for body in range(self._model.nbody)]
        self._robot = robot = self._contacts.shapes(lambda body: names[body] == _ROBOT)
        jointed = self._contacts.shapes(lambda body: int(self._model.body_jntnum[body]) > 0)
        self._objects = jointed & ~robot
        self._fingers = [
            self._contacts.shapes(lambda body, finger=finger: names[body] == finger)
            for finger in _FINGERS
        ]

    def moment(self) -> Moment:
        """How things stand now. There is one object, so another cannot be held."""
        env, data = self._env, self._data
        touches = self._contacts.with_shapes
        remaining = float(self._distance(env))
        radius = self.goal.radius
        reaching = self.goal.kind == "reach"
        position = env.tcp_center if reaching else env._get_pos_objects()[:3]
        goal = GoalMoment(
            touching=touches(data, self._robot, self._objects),
            held=all(touches(data, finger, self._objects) for finger in self._fingers),
            position=np.array(position, dtype=np.float64),
            remaining=remaining,
            reached=radius is not None and remaining <= radius,
        )
        return Moment(
            hand=np.array(env.tcp_center, dtype=np.float64),
            opening=self._opening(),
            closing=float(np.clip(data.ctrl[0], -1.0, 1.0)),
            held_another=False,
            goals=(goal,),
        )

    def _opening(self) -> float:
        """As the robot's own observation has it, 0 closed .. 1 open: the claws are 0.1 m apart at most."""
        right, left = (self._data.body(finger).xpos for finger in _FINGERS)
        return float(np.clip(np.linalg.norm(right - left) / 0.1, 0.0, 1.0))

    def _asked_distance(self, env: Any) -> float:
        """What Meta-World's own evaluation calls the distance to the target; its memory stays as it is."""
        before = dict(env.__dict__)
        try:
            _, info = env.evaluate_state(env._last_stable_obs, np.zeros(4, np.float32))
        finally:
            env.__dict__.clear()
            env.__dict__.update(before)
        return float(info.get("obj_to_target", np.nan))
