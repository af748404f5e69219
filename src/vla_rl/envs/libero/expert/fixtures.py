"""Working the furniture: drawers, doors, knobs, and flat things that are pushed over the table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vla_rl.envs.libero.expert.grasp import (
    Grasp,
    best_grasp,
    hand_down,
    hand_facing,
    rim_grasps,
    room,
)
from vla_rl.envs.libero.expert.hand import CLOSED, OPEN, Condition, Hand, Plan
from vla_rl.envs.libero.expert.placing import HOVER, Placing
from vla_rl.envs.libero.expert.scene import Scene
from vla_rl.envs.libero.expert.shapes import DOWN, UP, Matrix, Vector, rotation_about, unit

_AHEAD = 0.06  # how far ahead of what it pushes or pulls the hand aims
_CLOSED_FINGERS = 0.032  # half the thickness of the closed fingers along their closing axis
_PULLING_TILT = 0.35  # rad: how much the hand on a drawer's handle points down
_PUSHING_TILT = 1.05  # pushing, it points down more: the palm stays clear of other handles
_ATTEMPTS = 3


class Fixtures:
    """Skills that move furniture until `done`."""

    def __init__(self, scene: Scene, hand: Hand, placing: Placing) -> None:
        self._scene = scene
        self._hand = hand
        self._placing = placing

    # -- drawers -------------------------------------------------------------------------------------

    def _drawer(self, name: str, joint: str) -> tuple[Vector, Vector, float]:
        """Direction in which a drawer opens, middle of its handle, and half the handle's depth."""
        _, axis = self._scene.joint_axis(joint)
        outward = axis * np.sign(self._scene.joint_range(name, "open"))
        lows, highs = self._scene.joint_parts(joint).bounds()
        middles = (lows + highs) / 2
        handle = int(np.argmax(middles @ outward))
        return outward, middles[handle], float((highs - lows)[handle] @ np.abs(outward)) / 2

    def open_drawer(self, name: str, joint: str, done: Condition) -> Plan:
        """Grip the handle from the front, a finger above and a finger below it, and pull."""
        hand = self._hand
        outward, bar, _ = self._drawer(name, joint)
        approach = -outward * np.cos(_PULLING_TILT) + DOWN * np.sin(_PULLING_TILT)
        rotation = hand.nearest(hand_facing(approach, UP))
        hand.gripper = OPEN
        yield from hand.move(bar - 0.11 * approach, rotation, within=0.015, limit=100)
        yield from hand.move(bar, rotation, within=0.008, limit=30, speed=0.7)
        yield from hand.close(bar, rotation)
        height = hand.position[2]

        def pull() -> Vector:
            return np.array([*(hand.position + _AHEAD * outward)[:2], height])

        yield from hand.move(pull, rotation, within=0.0, until=done)
        yield from hand.open()
        yield from hand.move(hand.position - 0.09 * approach, rotation, within=0.03, limit=25)

    def close_drawer(self, name: str, joint: str, done: Condition) -> Plan:
        """Push the handle in with closed fingers."""
        hand = self._hand
        outward, bar, depth = self._drawer(name, joint)
        front = bar + outward * (depth + 0.012)
        approach = -outward * np.cos(_PUSHING_TILT) + DOWN * np.sin(_PUSHING_TILT)
        rotation = hand.nearest(hand_facing(approach, np.cross(outward, UP)))
        hand.gripper = CLOSED
        before = front + _AHEAD * outward
        above = np.array([*before[:2], max(hand.position[2], before[2] + 0.15)])
        yield from hand.move(above, rotation, within=0.03, angle=0.2)
        yield from hand.move(before, rotation, within=0.015, limit=60)

        def push() -> Vector:
            return np.array([*(hand.position - _AHEAD * outward)[:2], front[2]])

        yield from hand.move(push, rotation, within=0.0, limit=90, until=done)
        yield from hand.move(hand.position + 0.08 * outward, rotation, within=0.03, limit=20)

    # -- hinges --------------------------------------------------------------------------------------

    def turn_knob(self, name: str, joint: str, done: Condition) -> Plan:
        """Take a stove's knob by its ridge, which lies along the world's x while off, and turn the hand with it."""
        scene, hand = self._scene, self._hand
        anchor, axis = scene.joint_axis(joint)
        lows, highs = scene.joint_parts(joint).bounds()
        ridge = highs[:, 2] > highs[:, 2].max() - 0.02
        low, high = lows[ridge].min(axis=0), highs[ridge].max(axis=0)
        # its end away from the robot: the near one folds the arm to its limits
        grip = np.array([high[0] - 0.02, (low[1] + high[1]) / 2, high[2] - 0.012])
        sign = np.sign(scene.joint_range(name, "turnon") - scene.joint_range(name, "turnoff"))
        rotation, start = hand.nearest(hand_down(0.0)), scene.joint(joint)
        hand.gripper = OPEN
        yield from hand.move(grip + 0.08 * UP, rotation, within=0.012, force=1.5)
        yield from hand.move(grip, rotation, within=0.006, limit=50, speed=0.6, force=2.0)
        yield from hand.close(grip, rotation)

        def turn() -> Matrix:
            return rotation_about(axis, scene.joint(joint) - start + sign * 0.5) @ rotation

        def follow() -> Vector:
            return anchor + rotation_about(axis, scene.joint(joint) - start) @ (grip - anchor)

        yield from hand.move(follow, turn, within=0.0, force=2.0, until=done)
        yield from hand.open()
        yield from hand.move(hand.position + 0.1 * UP, hand.rotation, within=0.03, limit=25)

    def close_door(self, name: str, joint: str, done: Condition) -> Plan:
        """Push a door shut from its outer face with closed fingers."""
        scene, hand = self._scene, self._hand
        anchor, axis = scene.joint_axis(joint)
        lows, highs = scene.joint_parts(joint).bounds()
        panel = int(np.argmax(np.prod(highs - lows, axis=1)))
        low, high = lows[panel], highs[panel]
        radial = (low + high) / 2 - anchor
        radial -= axis * (radial @ axis)
        sign = np.sign(scene.joint_range(name, "close") - scene.joint_range(name, "open"))
        ahead = unit(sign * np.cross(axis, radial))
        arm = 1.2 * radial  # beyond the middle: a longer lever
        arm[2] = high[2] - 0.04 - anchor[2]
        thickness = (high - low) @ np.abs(ahead) / 2
        before = anchor + arm - ahead * (thickness + _CLOSED_FINGERS + 0.05)
        rotation = hand.nearest(hand_down(0.0))
        hand.gripper = CLOSED
        above = np.array([*before[:2], high[2] + 0.08])
        up = np.array([*hand.position[:2], above[2]])
        yield from hand.move(up, rotation, within=0.03, limit=30)
        yield from hand.move(above, rotation, within=0.02)
        yield from hand.move(before, rotation, within=0.02, limit=40)
        yield from self._swing(joint, arm, rotation, float(sign), done)
        yield from hand.move(hand.position + 0.1 * UP, rotation, within=0.03, limit=25)

    def _swing(
        self, joint: str, arm: Vector, rotation: Matrix, sign: float, done: Condition
    ) -> Plan:
        """Push a hinged thing round in the sense of `sign`, always square to it.

        `arm` reaches from the hinge's anchor to where the thing is pushed, as it stands now.
        """
        scene = self._scene
        anchor, axis = scene.joint_axis(joint)
        start = scene.joint(joint)

        def ahead() -> Vector:
            radial = rotation_about(axis, scene.joint(joint) - start) @ arm
            return anchor + radial + _AHEAD * unit(sign * np.cross(axis, radial))

        yield from self._hand.move(ahead, rotation, within=0.0, limit=160, force=3.0, until=done)

    # -- pushing -------------------------------------------------------------------------------------

    def push(self, name: str, target: str, done: Condition) -> Plan:
        """Push a flat thing over the table to a region, a finger on either side of its rim so that it stays there."""
        scene, hand = self._scene, self._hand
        for _ in range(_ATTEMPTS):
            way = (scene.position(target) - scene.position(name)) * [1.0, 1.0, 0.0]
            grasp = self._rim_behind(name, unit(way))
            if grasp is None or done():
                return
            hand.gripper = OPEN
            yield from self._placing.travel(grasp.position + HOVER * UP, grasp, name)
            yield from hand.move(grasp.position, grasp.rotation, within=0.006, limit=40, speed=0.7)
            yield from hand.close(grasp.position, grasp.rotation)
            yield from self._slide(name, target, grasp.rotation, done)
            yield from hand.open()
            yield from hand.move(hand.position + 0.1 * UP, grasp.rotation, within=0.03, limit=25)

    def _slide(self, name: str, target: str, rotation: Matrix, done: Condition) -> Plan:
        """Move what is held at the table's height, until it is there or has been lost."""
        scene, hand = self._scene, self._hand
        height = hand.position[2]
        reach = float(np.linalg.norm(hand.position - scene.position(name))) + 0.03

        def towards() -> Vector:
            aim = hand.position + scene.position(target) - scene.position(name)
            return np.array([*aim[:2], height])

        def over() -> bool:
            lost = np.linalg.norm(hand.position - scene.position(name)) > reach
            return bool(lost) or done()

        yield from hand.move(towards, rotation, within=0.008, limit=150, speed=0.5, until=over)

    def _rim_behind(self, name: str, way: Vector) -> Grasp | None:
        """A grasp of the rim, on the side away from where the thing shall go if there is room; None if none fits."""
        scene = self._scene
        middle, obstacles = scene.position(name), scene.obstacles([name])

        def priced(grasp: Grasp) -> Grasp:
            side = unit((grasp.position - middle) * [1.0, 1.0, 0.0]) @ way
            return replace(grasp, cost=grasp.cost + 0.02 * float(side))

        grasps = [priced(grasp) for grasp in rim_grasps(scene.shape(name).points())]
        if not grasps:
            return None
        grasp = best_grasp(grasps, [lambda candidate: room(candidate, obstacles)])
        return replace(grasp, rotation=self._hand.nearest(grasp.rotation))
