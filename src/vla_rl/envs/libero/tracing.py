"""What happens to the objects of a LIBERO episode: contacts, gripper, goals, and how far they still have to go.

The goals are those of the task's BDDL file. An object that has to be on or in something is grasped; a drawer, a door
or a knob is moved, and what remains of it is that of its joint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64

from vla_rl.envs.trace import Contacts, GoalKind, GoalMoment, Moment, TracedGoal

_FINGERS = ("gripper0_leftfinger", "gripper0_rightfinger")
_HAND = "gripper0"
_GRIP_SITE = "gripper0_grip_site"
_WIDE_OPEN = 0.08
"""The fingers are so far apart at most, m."""
_STATES = ("open", "close", "turnon", "turnoff")


class Witness:
    """Reads moments from the simulator of one task. `problem` is LIBERO's, with objects and predicates."""

    def __init__(self, problem: Any, model: Any, data: Any) -> None:
        self._problem, self._model, self._data = problem, model, data
        self._predicates = [list(goal) for goal in problem.parsed_problem["goal_state"]]
        self.goals = tuple(_traced(predicate) for predicate in self._predicates)
        self._contacts = Contacts(model)
        names = [str(model.body(body).name) for body in range(model.nbody)]
        # LIBERO's Panda hangs its fingers on the hand, below bodies named gripper0_...
        self._hand = self._contacts.shapes(lambda body: names[body].startswith(_HAND))
        self._fingers = [
            self._contacts.shapes(lambda body, finger=finger: names[body] == finger)
            for finger in _FINGERS
        ]
        self._shapes = [self._of(self._moved(predicate)) for predicate in self._predicates]
        movable = [self._of(int(problem.obj_body_id[name])) for name in problem.objects_dict]
        wanted = np.any(self._shapes, axis=0)
        self._others = np.any(movable, axis=0) & ~wanted if movable else np.zeros_like(wanted)
        self._grip_site = int(model.site(_GRIP_SITE).id)

    def moment(self, gripper: Float64[np.ndarray, " 2"]) -> Moment:
        """How things stand now. gripper: the commanded opening of the fingers, as the controller remembers it."""
        data, touches = self._data, self._contacts.with_shapes
        goals = []
        for predicate, shapes in zip(self._predicates, self._shapes, strict=True):
            goals.append(
                GoalMoment(
                    touching=touches(data, self._hand, shapes),
                    held=all(touches(data, finger, shapes) for finger in self._fingers),
                    position=np.array(data.xpos[self._moved(predicate)], dtype=np.float64),
                    remaining=self._remaining(predicate),
                    reached=bool(self._problem._eval_predicate(predicate)),
                )
            )
        joints = [float(data.joint(f"gripper0_finger_joint{finger}").qpos[0]) for finger in (1, 2)]
        return Moment(
            hand=np.array(data.site_xpos[self._grip_site], dtype=np.float64),
            opening=float(np.clip(abs(joints[0] - joints[1]) / _WIDE_OPEN, 0.0, 1.0)),
            # the first finger opens towards +1, so that a command to close lowers it
            closing=float(np.clip(-gripper[0], -1.0, 1.0)),
            held_another=all(touches(data, finger, self._others) for finger in self._fingers),
            goals=tuple(goals),
        )

    def _of(self, root: int) -> Any:
        return self._contacts.shapes(lambda body: body == root)

    def _moved(self, predicate: list[str]) -> int:
        """The body that a predicate wants to be somewhere else."""
        subject = predicate[1]
        if predicate[0] not in _STATES:
            return int(self._problem.obj_body_id[subject])
        return int(self._model.jnt_bodyid[self._model.joint(self._joint(subject)).id])

    def _joint(self, subject: str) -> str:
        """The joint that moves a region (its drawer's), or a fixture's door or knob."""
        problem = self._problem
        thing = (
            problem.get_object(subject)
            if subject in problem.obj_body_id
            else problem.object_sites_dict[subject]
        )
        return str(thing.joints[-1])

    def _remaining(self, predicate: list[str]) -> float:
        """Metres between object and place, or how far a joint is from where it counts."""
        problem, data = self._problem, self._data
        state, subject = predicate[0], predicate[1]
        if state not in _STATES:
            goal = predicate[-1]
            place = (
                data.xpos[problem.obj_body_id[goal]]
                if goal in problem.obj_body_id
                else data.site_xpos[self._model.site(goal).id]
            )
            return float(np.linalg.norm(data.xpos[problem.obj_body_id[subject]] - place))
        site = problem.object_sites_dict.get(subject)
        carrier = subject if subject in problem.obj_body_id or site is None else site.parent_name
        properties = problem.get_object(carrier).object_properties
        low, high = sorted(properties["articulation"][f"default_{state}_ranges"])
        at = float(data.joint(self._joint(subject)).qpos[0])
        return max(low - at, at - high, 0.0)


def _traced(predicate: list[str]) -> TracedGoal:
    state, *about = predicate
    kind: GoalKind = "move" if state in _STATES else "grasp"
    return TracedGoal(f"{state} {' '.join(about)}", kind, 0.0 if kind == "move" else None)
