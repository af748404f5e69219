"""What the scripted LIBERO expert knows of a scene: shapes, poses and goals, read straight from the simulator.

Privileged: nothing here may reach a policy. World frame, metres and radians throughout. Objects, fixtures and regions
carry the names of the task's BDDL file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from vla_rl.envs.libero.expert.shapes import Boxes, Matrix, Vector

Goal = tuple[str, ...]
"""A predicate and what it is about, such as ("on", "akita_black_bowl_1", "plate_1")."""

_ROBOT = ("robot0", "gripper0", "mount0")
_SLIDE = 2  # mjJNT_SLIDE
_PLANE = 0  # mjGEOM_PLANE: endless, and always below everything


class Scene:
    """Names to shapes, poses, joints and goals. `simulator` gives the simulator with the present episode in it."""

    def __init__(self, simulator: Callable[[], Any]) -> None:
        self._simulator = simulator
        model = simulator().model
        self._grip_site = int(model.site("gripper0_grip_site").id)
        self._bodies = [str(model.body(b).name) for b in range(model.nbody)]
        collides = (np.asarray(model.geom_contype) + np.asarray(model.geom_conaffinity)) > 0
        self._solid = np.flatnonzero(collides & (np.asarray(model.geom_type) != _PLANE))
        robot = [b for b, name in enumerate(self._bodies) if name.startswith(_ROBOT)]
        self._is_robot = np.isin(np.asarray(model.geom_bodyid)[self._solid], robot)
        self._shapes: dict[int, Int64[np.ndarray, " g"]] = {}

    @property
    def _model(self) -> Any:
        return self._simulator().model

    @property
    def _data(self) -> Any:
        return self._simulator().data

    @property
    def _problem(self) -> Any:
        return self._simulator().robosuite_env

    # -- goals ---------------------------------------------------------------------------------------

    def goals(self) -> list[Goal]:
        """What must hold at the end, as the BDDL file lists it."""
        return [tuple(goal) for goal in self._problem.parsed_problem["goal_state"]]

    def holds(self, goal: Goal) -> bool:
        """Whether LIBERO counts this goal as reached now."""
        return bool(self._problem._eval_predicate(list(goal)))

    # -- robot ---------------------------------------------------------------------------------------

    def hand_position(self) -> Vector:
        """Grip site: between the fingertips, 12.5 mm above their ends."""
        return np.array(self._data.site_xpos[self._grip_site])

    def hand_rotation(self) -> Matrix:
        """Columns: closing axis of the fingers, axis across them, approach axis (out of the palm)."""
        return np.array(self._data.site_xmat[self._grip_site]).reshape(3, 3)

    def finger_opening(self) -> float:
        """Distance between the fingers, 0 to 0.08."""
        return 2.0 * self.joint("gripper0_finger_joint1")

    def robot_base(self) -> Vector:
        """Where the arm stands."""
        return np.array(self._data.xpos[self._bodies.index("robot0_base")])

    # -- joints --------------------------------------------------------------------------------------

    def joint(self, name: str) -> float:
        """Position of a hinge (rad) or slide (m)."""
        model = self._model
        return float(self._data.qpos[model.jnt_qposadr[model.joint(name).id]])

    def joint_axis(self, name: str) -> tuple[Vector, Vector]:
        """Anchor and unit axis of a joint."""
        joint, data = self._model.joint(name).id, self._data
        return np.array(data.xanchor[joint]), np.array(data.xaxis[joint])

    def joint_parts(self, name: str) -> Boxes:
        """Collision shapes of what a joint moves."""
        model = self._model
        return self._boxes(self._shapes_of(int(model.jnt_bodyid[model.joint(name).id])))

    def joint_of(self, name: str) -> str | None:
        """The joint that moves a region (its drawer's) or a fixture's door or knob."""
        if self.is_object(name):
            joints = self._problem.get_object(name).joints
        else:
            joints = self._problem.object_sites_dict[name].joints
        return str(joints[-1]) if joints else None

    def slides(self, joint: str) -> bool:
        """Whether a joint is a slide (a drawer's) and not a hinge."""
        return int(self._model.jnt_type[self._model.joint(joint).id]) == _SLIDE

    def joint_range(self, name: str, state: str) -> float:
        """Middle of the joint positions that count as "open", "close", "turnon" or "turnoff" for a fixture."""
        properties = self._problem.get_object(self.carrier(name)).object_properties
        return float(np.mean(properties["articulation"][f"default_{state}_ranges"]))

    # -- things and regions --------------------------------------------------------------------------

    def is_object(self, name: str) -> bool:
        """Whether `name` is a body (movable object or fixture) and not merely a region."""
        return name in self._problem.obj_body_id

    def carrier(self, name: str) -> str:
        """The thing a region belongs to; a thing belongs to itself."""
        if self.is_object(name):
            return name
        return str(self._problem.object_sites_dict[name].parent_name)

    def position(self, name: str) -> Vector:
        """Origin of an object's body or centre of a region: the point LIBERO's predicates look at."""
        if self.is_object(name):
            return np.array(self._data.xpos[self._problem.obj_body_id[name]])
        return np.array(self._data.site_xpos[self._model.site(name).id])

    def region_half_extents(self, region: str) -> Vector:
        """Half sizes of a region's box along the world's axes, as LIBERO takes them."""
        site = self._model.site(region).id
        rotation = np.array(self._data.site_xmat[site]).reshape(3, 3)
        return np.abs(rotation @ np.array(self._model.site_size[site]))

    def shape(self, name: str) -> Boxes:
        """Collision shapes of an object or fixture."""
        return self._boxes(self._shapes_of(int(self._problem.obj_body_id[name])))

    def bottom(self, name: str) -> float:
        """Height of an object's lowest point."""
        return float(self.shape(name).hull()[0][2])

    # -- surroundings --------------------------------------------------------------------------------

    def obstacles(self, ignore: Iterable[str] = ()) -> Boxes:
        """Everything that is neither robot nor one of the objects `ignore`."""
        return self._boxes(self._solid[self._others(ignore)])

    def tallest_between(
        self, start: Vector, end: Vector, radius: float, ignore: Iterable[str] = ()
    ) -> float:
        """Highest point of what stands within `radius` of the way from `start` to `end`, seen from above.

        -inf if nothing does.
        """
        lows, highs = self.obstacles(ignore).bounds()
        way = np.linspace(start[:2], end[:2], 12)[:, None]
        gaps = np.maximum(np.maximum(lows[:, :2] - way, way - highs[:, :2]), 0.0)
        near = np.linalg.norm(gaps, axis=-1).min(axis=0) < radius
        return float(highs[near, 2].max(initial=-np.inf))

    def way_from_under(self, name: str, margin: float = 0.02) -> Vector:
        """Shortest horizontal shift that takes an object out from under what hangs over it; zero if nothing does."""
        low, high = self.shape(name).hull()
        lows, highs = self.obstacles([name]).bounds()
        beside = (lows[:, :2] > high[:2] + margin) | (highs[:, :2] < low[:2] - margin)
        over = (lows[:, 2] > high[2] - 0.01) & ~beside.any(axis=1)
        if not over.any():
            return np.zeros(3)
        left, right = lows[over].min(axis=0), highs[over].max(axis=0)
        shifts = [axis * (right - low + margin) for axis in np.eye(3)[:2]]
        shifts += [-axis * (high - left + margin) for axis in np.eye(3)[:2]]
        return min(shifts, key=lambda shift: float(np.linalg.norm(shift)))

    def open_side(self, region: str, ignore: Iterable[str] = ()) -> Vector | None:
        """Horizontal direction in which a roofed region is least walled in; None if it is open above."""
        centre, reach = self.position(region), self.region_half_extents(region)
        obstacles = self.obstacles(ignore)
        upwards = np.linspace(0.0, reach[2] + 0.05, 9)[:, None] * np.eye(3)[2]
        if obstacles.distances(centre + upwards).min() > 0.0:
            return None

        def free(direction: Vector) -> float:
            way = np.linspace(0.0, reach @ np.abs(direction) + 0.1, 12)[:, None]
            return float(obstacles.distances(centre + way * direction).min())

        return max((*np.eye(3)[:2], *-np.eye(3)[:2]), key=free)

    # -- shapes --------------------------------------------------------------------------------------

    def _others(self, ignore: Iterable[str]) -> Bool[np.ndarray, " g"]:
        mask = ~self._is_robot
        for name in ignore:
            mask &= ~np.isin(self._solid, self._shapes_of(int(self._problem.obj_body_id[name])))
        return mask

    def _shapes_of(self, root: int) -> Int64[np.ndarray, " g"]:
        """Collision shapes of a body and of all bodies that hang on it."""
        if root not in self._shapes:
            model = self._model
            inside = {root}
            for body in range(root + 1, model.nbody):  # MuJoCo lists parents before children
                if int(model.body_parentid[body]) in inside:
                    inside.add(body)
            owners = np.asarray(model.geom_bodyid)[self._solid]
            self._shapes[root] = self._solid[np.isin(owners, list(inside))]
        return self._shapes[root]

    def _boxes(self, shapes: Int64[np.ndarray, " g"]) -> Boxes:
        model, data = self._model, self._data
        local = np.asarray(model.geom_aabb)[shapes]  # centre and half sizes in the shape's frame
        rotations = np.asarray(data.geom_xmat)[shapes].reshape(-1, 3, 3)
        offsets = np.einsum("gij,gj->gi", rotations, local[:, :3])
        return Boxes(np.asarray(data.geom_xpos)[shapes] + offsets, rotations, local[:, 3:])
