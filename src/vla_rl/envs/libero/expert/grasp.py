"""Where to take hold of a thing: pure geometry, no simulator. World frame, metres and radians.

A hand frame has the fingers' closing axis as x and the approach axis (out of the palm) as z; its origin is the grip
site between the fingertips. The fingers are alike, so closing axes u and -u are the same grasp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from vla_rl.envs.libero.expert.shapes import (
    DOWN,
    Boxes,
    Matrix,
    Points,
    Vector,
    rotation_about,
    unit,
    wrap_half_turn,
)

MAX_WIDTH = 0.076
"""Widest thing that goes between the open fingers (their pads are 0.0765 apart)."""
FINGERTIP = 0.0125
"""The fingers end this far beyond the grip site."""
PALM = 0.026
"""The palm begins this far behind the grip site."""
_STANDS_AT = FINGERTIP + 0.003  # lowest grip above what a thing stands on
_DEPTH = 0.027  # of the grip below the top of a thing
_ENOUGH_ROOM = 0.015  # more room for the hand makes a grasp no better
_PRICE_OF_ROOM = 4.0
_PRICE_OF_COLLISION = 0.05
_PRICE_OF_REPETITION = 0.03


@dataclass(frozen=True)
class Grasp:
    """A hand pose that holds something when the fingers close. Costs compare like centimetres of width."""

    position: Vector
    rotation: Matrix
    width: float  # of the thing between the fingers
    cost: float = 0.0

    @property
    def approach(self) -> Vector:
        return self.rotation[:, 2]

    @property
    def closing(self) -> Vector:
        return self.rotation[:, 0]


def _hand_points() -> Points:
    """The open hand in its own frame: both fingers (to their outer faces), then the palm."""
    fingers = [
        (side * x, y, z)
        for side in (-1, 1)
        for x in (0.042, 0.068)
        for y in (-0.011, 0.0, 0.011)
        for z in (0.010, -0.01, -0.035)
    ]
    palm = [
        (x, y, z)
        for x in np.linspace(-0.104, 0.104, 7)
        for y in (-0.032, 0.0, 0.032)
        for z in (-0.05, -0.09, -0.124)
    ]
    return np.array(fingers + palm)


HAND_POINTS = _hand_points()
"""Points on the open hand, in its frame."""


def hand_facing(approach: Vector, closing: Vector) -> Matrix:
    """Hand rotation with this approach axis; the closing axis is made orthogonal to it."""
    z = unit(approach)
    x = unit(closing - z * (closing @ z))
    return np.stack([x, np.cross(z, x), z], axis=1)


def hand_down(yaw: float) -> Matrix:
    """Hand pointing straight down; at yaw 0 the fingers close along the world's y, as at the start of an episode."""
    return hand_facing(DOWN, np.array([-np.sin(yaw), np.cos(yaw), 0.0]))


def extent_along(points: Points, direction: Float64[np.ndarray, " 2"]) -> tuple[float, float]:
    """Extent of points along a horizontal unit direction, and the middle of that extent."""
    along = points[:, :2] @ direction
    return float(along.max() - along.min()), float((along.max() + along.min()) / 2)


def pinch_grasps(points: Points, angles: int = 24) -> list[Grasp]:
    """Top-down grasps around a whole thing that is filled by `points`; of long things also off the middle.

    The grip is as deep below the top as palm and support allow. Only those that fit between the fingers; maybe none.
    """
    low, high = float(points[:, 2].min()), float(points[:, 2].max())
    height = max(low + _STANDS_AT, high - _DEPTH)
    # what the fingers close on, and all above it: that has to pass between them too
    nearest = float(np.abs(points[:, 2] - height).min())
    slab = points[points[:, 2] > height - max(FINGERTIP, nearest)]
    grasps = []
    for yaw in np.linspace(-np.pi / 2, np.pi / 2, angles, endpoint=False):
        closing = np.array([-np.sin(yaw), np.cos(yaw)])
        across = np.array([np.cos(yaw), np.sin(yaw)])
        width, middle = extent_along(slab, closing)
        if width > MAX_WIDTH:
            continue
        length, centre = extent_along(slab, across)
        shift = max(0.0, length / 2 - 0.02)
        for offset in (0.0, shift / 2, -shift / 2, shift, -shift) if shift > 0.01 else (0.0,):
            xy = closing * middle + across * (centre + offset)
            cost = width + 0.015 * abs(float(yaw)) + 0.3 * abs(offset)
            grasps.append(Grasp(np.array([*xy, height]), hand_down(float(yaw)), width, cost))
    return grasps


def rim_grasps(points: Points, directions: int = 24) -> list[Grasp]:
    """Grasps of the wall of a bowl, cup or dish, one finger inside; none where a handle is in the way."""
    low, high = float(points[:, 2].min()), float(points[:, 2].max())
    height = max(low + _STANDS_AT, high - _DEPTH + 0.002)
    rim = points[points[:, 2] > high - min(0.02, 0.4 * (high - low))]
    middle = np.median(rim[:, :2], axis=0)
    grasps = []
    for angle in np.linspace(-np.pi, np.pi, directions, endpoint=False):
        outward = np.array([-np.sin(angle), np.cos(angle)])
        relative = rim[:, :2] - middle
        along = relative @ outward
        aside = np.abs(relative @ np.array([outward[1], -outward[0]]))
        wall = along[(along > 0.01) & (aside < 0.01)]
        if wall.size == 0 or np.ptp(wall) > 0.03:
            continue
        xy = middle + outward * (wall.max() + wall.min()) / 2
        yaw = wrap_half_turn(float(angle))
        position = np.array([*xy, height])
        grasps.append(Grasp(position, hand_down(yaw), float(np.ptp(wall)), 0.01 * abs(yaw)))
    return grasps


def handle_grasps(parts: Boxes) -> list[Grasp]:
    """Grasps of the thin parts that stick out of a thing's body: handles.

    Whether the fingers find room beside the rest of the thing is for the caller to check.
    """
    lows, highs = parts.bounds()
    middles = (lows + highs) / 2
    away = np.linalg.norm((middles - np.median(middles, axis=0))[:, :2], axis=1)
    grasps = []
    for low, high, middle, distance in zip(lows, highs, middles, away, strict=True):
        if distance < 1.25 * np.median(away):
            continue
        height = max(float(lows[:, 2].min()) + _STANDS_AT, float(high[2]) - 0.015)
        position = np.array([*middle[:2], height])
        for yaw, width in ((0.0, float((high - low)[1])), (-np.pi / 2, float((high - low)[0]))):
            if width < 0.03:
                grasps.append(Grasp(position, hand_down(yaw), width, 0.02 + 0.1 * float(distance)))
    return grasps


def leaning(grasp: Grasp, angle: float) -> Grasp:
    """The same grasp with the hand leaning over about its closing axis."""
    lean = rotation_about(np.array([1.0, 0.0, 0.0]), angle)
    return replace(grasp, rotation=grasp.rotation @ lean, cost=grasp.cost + 0.03 * abs(angle))


def room(grasp: Grasp, obstacles: Boxes) -> float:
    """Least distance of the open hand from any obstacle, in the grasp and 3 cm before it; negative in a collision."""
    here = HAND_POINTS @ grasp.rotation.T + grasp.position
    hand = np.concatenate([here, here - 0.03 * grasp.approach])
    return float(obstacles.near(grasp.position, 0.2).distances(hand).min())


def best_grasp(
    grasps: Sequence[Grasp],
    rooms: Sequence[Callable[[Grasp], float]],
    tried: Sequence[Grasp] = (),
) -> Grasp:
    """The cheapest grasp. `rooms` tell the hand's room (m) for a grasp; grasps like those `tried` cost more.

    Raises ValueError if there are none.
    """

    def cost(grasp: Grasp) -> float:
        total = grasp.cost
        for measure in rooms:
            space = measure(grasp)
            total += _PRICE_OF_ROOM * max(0.0, _ENOUGH_ROOM - space)
            total += _PRICE_OF_COLLISION * (space < 0.0)
        for old in tried:
            same_place = np.linalg.norm(old.position - grasp.position) < 0.02
            same_turn = abs(old.closing @ grasp.closing) > 0.9
            total += _PRICE_OF_REPETITION * bool(same_place and same_turn)
        return total

    return min(grasps, key=cost)
