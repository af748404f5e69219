"""Where a LIBERO goal wants an object to be put."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_rl.envs.libero.expert.scene import Goal, Scene
from vla_rl.envs.libero.expert.shapes import UP, Vector

HOLLOW = ("bowl", "mug", "cup", "ramekin", "basket", "caddy", "pan", "tray")
"""Categories (parts of names) that things are let go into, by a hand that stays above the rim."""
_RIM = 0.012  # the hand stays this far above the rim of what it drops things into
_INSIDE = 0.03  # from a region's border to the place of what is pushed in
_SILL = 0.012  # what is pushed in is carried this far above the floor
_APART = 0.015  # from a region's border to the outer ones of several objects in it


@dataclass(frozen=True)
class Spot:
    """A place for an object's reference point (see `reference`); its z is the height of the surface."""

    point: Vector
    lowest_hand: float = -np.inf  # the grip site stays above this
    top: float = -np.inf  # what is carried here must come over this
    dropped_into: str | None = None  # the container, which the hand stays above
    entry: Vector | None = None  # the horizontal direction to come from, where there is a roof


def named(name: str, categories: tuple[str, ...]) -> bool:
    """Whether an object's name tells that it is of one of these kinds."""
    return any(category in name for category in categories)


def reference(scene: Scene, name: str) -> Vector:
    """The point of an object that goes to a spot, at the height of its bottom.

    It lies halfway between the origin, which predicates look at, and the middle, which should be over the support.
    """
    low, high = scene.shape(name).hull()
    between = (scene.position(name) + (low + high) / 2) / 2
    return np.array([*between[:2], low[2]])


def spot(scene: Scene, goal: Goal) -> Spot:
    """Where the object of an ("on" or "in", object, target) goal belongs, as the target stands now."""
    relation, name, target = goal
    carrier = scene.carrier(target)
    centre = scene.position(target)
    if scene.is_object(carrier) and named(carrier, HOLLOW):
        low, high = scene.shape(carrier).hull()
        point = np.array([*centre[:2], low[2] + 0.02])
        return Spot(point, high[2] + _RIM, float(high[2]), carrier)
    surface = scene.tallest_between(centre, centre, 0.005, [name])
    if scene.is_object(target):
        return Spot(np.array([*centre[:2], surface]))
    half = scene.region_half_extents(target)
    if relation == "in":
        floor = float(centre[2] - half[2])
        entry = scene.open_side(target, [name])
        if entry is not None:
            inside = centre + entry * (half @ np.abs(entry) - _INSIDE)
            inside = _roomiest(scene, inside, np.array([entry[1], entry[0], 0.0]), half, name)
            return Spot(np.array([*inside[:2], floor]), entry=entry)
        surface = floor
    share = _share(scene, goal) * (half[0] - _APART)
    return Spot(np.array([centre[0] + share, centre[1], surface]))


def above_sill(place: Spot) -> Vector:
    """The place a little above the floor, for what is pushed in from the side."""
    return place.point + _SILL * UP


def _roomiest(scene: Scene, middle: Vector, along: Vector, half: Vector, name: str) -> Vector:
    """The point with most room on a horizontal line through `middle`, as far as a region goes."""
    reach = half @ np.abs(along) - _INSIDE
    points = middle + np.linspace(-reach, reach, 17)[:, None] * np.abs(along)
    room = scene.obstacles([name]).distances(points)
    return points[room > room.max() - 0.002].mean(axis=0)


def _share(scene: Scene, goal: Goal) -> float:
    """-1 to 1 along a region's length, where several objects are to stand in it; the far one comes first."""
    names = [other[1] for other in scene.goals() if other[0] == goal[0] and other[2:] == goal[2:]]
    if len(names) < 2:
        return 0.0
    return float(np.linspace(1.0, -1.0, len(names))[names.index(goal[1])])
