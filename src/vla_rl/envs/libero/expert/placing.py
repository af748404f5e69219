"""Picking a thing up and putting it where a goal wants it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np

from vla_rl.envs.libero.expert.grasp import (
    FINGERTIP,
    PALM,
    Grasp,
    best_grasp,
    handle_grasps,
    leaning,
    pinch_grasps,
    rim_grasps,
    room,
)
from vla_rl.envs.libero.expert.hand import CLOSED, OPEN, Action, Hand, Plan
from vla_rl.envs.libero.expert.scene import Goal, Scene
from vla_rl.envs.libero.expert.shapes import UP, Vector
from vla_rl.envs.libero.expert.spots import Spot, above_sill, named, reference, spot

RIMMED = ("bowl", "mug", "cup", "ramekin", "plate")
"""Categories that are held by their wall."""
HANDLED = ("mug", "cup", "pot", "pan")
"""Categories that may be held by a handle."""
HOVER = 0.08
"""A hand waits so far above (m) before it goes down to a grasp."""

_CARRIED_OVER = 0.04  # between what is carried and what it passes over
_PASSED_OVER = 0.03  # between the empty hand and what it passes over
_OUTSIDE = 0.19  # from a roofed spot to where its way in begins
_GENTLE = 0.7  # speed of what is held by its wall, and swings
_SLIPPED = 0.05  # moved so far in the hand, a thing counts as lost
_ATTEMPTS = 4
_TIGHT = 0.008  # with less room for the hand, handles and leaning hands are considered too
_LEAN = 0.4  # rad
_STRETCH = 0.62  # an arm stretched further makes a grasp worse

Attempt = Generator[Action, None, bool]
"""A plan that tells whether it worked."""


@dataclass(frozen=True)
class Carried:
    """What is in the hand and where it goes."""

    name: str
    goal: Goal
    grasp: Grasp
    place: Spot
    height: float  # of the hand on the way
    top: float  # of what it passes over


class Placing:
    """Pick-and-place skills in one scene."""

    def __init__(self, scene: Scene, hand: Hand) -> None:
        self._scene = scene
        self._hand = hand

    def move_object(self, goal: Goal) -> Plan:
        """Pick up the object of an "on" or "in" goal and put it where it belongs; again if it slips away."""
        tried: list[Grasp] = []
        for _ in range(_ATTEMPTS):
            grasp = self.choose_grasp(goal[1], spot(self._scene, goal), tried)
            if grasp is None:
                return
            tried.append(grasp)
            if (yield from self.pick(goal[1], grasp)) and (yield from self.place(goal, grasp)):
                return

    # -- grasping ------------------------------------------------------------------------------------

    def choose_grasp(self, name: str, place: Spot, tried: list[Grasp]) -> Grasp | None:
        """The cheapest grasp with room for the hand both where the object is and where it goes; None if none fits."""
        body, handles = self._grasps(name)
        if not body and not handles:
            return None
        origin = reference(self._scene, name)
        here = self._scene.obstacles([name])
        there = self._scene.obstacles([name, place.dropped_into] if place.dropped_into else [name])

        def room_here(grasp: Grasp) -> float:
            return room(grasp, here)

        def room_there(grasp: Grasp) -> float:
            moved = grasp.position - origin + place.point
            moved[2] = max(moved[2], place.lowest_hand)
            return room(replace(grasp, position=moved), there)

        rooms = (room_here, room_there)
        chosen = best_grasp(body or handles, rooms, tried)
        if min(room_here(chosen), room_there(chosen)) < _TIGHT:
            upright = body + handles
            tilted = [leaning(grasp, angle) for grasp in upright for angle in (-_LEAN, _LEAN)]
            chosen = best_grasp(upright + tilted, rooms, tried)
        return replace(chosen, rotation=self._hand.nearest(chosen.rotation))

    def _grasps(self, name: str) -> tuple[list[Grasp], list[Grasp]]:
        """Upright grasps of an object's body and of its handles, dearer the further the arm has to stretch."""
        shape = self._scene.shape(name)
        points = shape.points()
        body = rim_grasps(points) if named(name, RIMMED) else pinch_grasps(points)
        handles: list[Grasp] = []
        if named(name, HANDLED):
            everything = self._scene.obstacles()  # the rest of the object too
            handles = [grasp for grasp in handle_grasps(shape) if room(grasp, everything) > 0.0]
        if not body and not handles:
            body = rim_grasps(points)
        return [self._priced(grasp) for grasp in body], [self._priced(grasp) for grasp in handles]

    def _priced(self, grasp: Grasp) -> Grasp:
        before = grasp.position - HOVER * grasp.approach
        excess = max(0.0, self._hand.stretch(before, grasp.approach) - _STRETCH)
        return replace(grasp, cost=grasp.cost + 0.5 * excess)

    # -- picking -------------------------------------------------------------------------------------

    def pick(self, name: str, grasp: Grasp) -> Attempt:
        """Go there, close, lift; whether the object came along."""
        scene, hand, rotation = self._scene, self._hand, grasp.rotation
        before = grasp.position - HOVER * grasp.approach
        hand.gripper = OPEN
        yield from self.travel(before, grasp, name)
        yield from hand.move(grasp.position, rotation, within=0.006, limit=40, speed=0.7)
        yield from hand.close(grasp.position, rotation)
        aside = scene.way_from_under(name)
        if aside.any():
            low = hand.position + aside + 0.01 * UP
            yield from hand.move(low, rotation, within=0.015, limit=40, speed=0.6)
        start, stood = hand.position, scene.position(name)[2]
        yield from hand.move(start + 0.06 * UP, rotation, within=0.02, limit=30, speed=0.8)
        if scene.position(name)[2] - stood > 0.4 * (hand.position[2] - start[2]):
            return True
        yield from hand.open()
        yield from hand.move(before, rotation, within=0.03, limit=20)
        return False

    def travel(self, position: Vector, grasp: Grasp, name: str) -> Plan:
        """Bring the empty hand to a grasp of `name`, over whatever stands in between."""
        hand, start = self._hand, self._hand.position
        below_fingers = self._scene.tallest_between(start, position, 0.06, [name])
        below_palm = self._scene.tallest_between(start, position, 0.12, [name])
        top = max(below_fingers + FINGERTIP + _PASSED_OVER, below_palm - PALM + 0.02)
        if start[2] < top - 0.02:
            up = np.array([*start[:2], max(top, position[2])])
            yield from hand.move(up, hand.rotation, within=0.03, limit=40)
        if position[2] < top:
            over = np.array([*position[:2], top])
            yield from hand.move(over, grasp.rotation, within=0.03, angle=0.3)
        yield from hand.move(position, grasp.rotation, within=0.012, angle=0.08)

    # -- placing -------------------------------------------------------------------------------------

    def place(self, goal: Goal, grasp: Grasp) -> Attempt:
        """Carry what is held over its spot, lower it, let go, withdraw; False if it was lost on the way."""
        scene, hand = self._scene, self._hand
        place = spot(scene, goal)
        load = self._load(goal, grasp, place)
        grip = float(np.linalg.norm(scene.position(load.name) - hand.position))

        def lost() -> bool:
            offset = scene.position(load.name) - hand.position
            return bool(np.linalg.norm(offset) > grip + _SLIPPED)

        hand.gripper = CLOSED
        up = np.array([*hand.position[:2], load.height])
        yield from hand.move(up, grasp.rotation, within=0.03, limit=50, until=lost)
        begin = _way_in(place)
        yield from hand.move(
            lambda: self._over(load, begin), grasp.rotation,
            within=0.012, limit=100, speed=_GENTLE if named(load.name, RIMMED) else 1.0, until=lost,
        )  # fmt: skip
        if place.entry is not None:
            level = hand.position[2] + above_sill(place)[2] - scene.bottom(load.name)
            for point in (begin, place.point):
                yield from hand.move(
                    lambda point=point: np.array([*self._over(load, point)[:2], level]),
                    grasp.rotation, within=0.012, limit=60, speed=0.6, until=lost,
                )  # fmt: skip
        if lost():
            return False
        yield from self._lower(load)
        yield from self._withdraw(load)
        return True

    def _load(self, goal: Goal, grasp: Grasp, place: Spot) -> Carried:
        """How high the thing in the hand has to be carried."""
        name, here = goal[1], self._hand.position
        low, high = self._scene.shape(name).hull()
        radius = min(float(np.linalg.norm((high - low)[:2])) / 2, 0.07)
        top = self._scene.tallest_between(here, _way_in(place), radius, [name])
        top = max(top, place.top, float(place.point[2]))
        height = float(here[2] + max(0.0, top + _CARRIED_OVER - low[2]))
        return Carried(name, goal, grasp, place, height, top)

    def _over(self, load: Carried, point: Vector) -> Vector:
        """Where the hand is when its load is above a point; higher where the load has sagged."""
        here = self._hand.position
        aim = point - (reference(self._scene, load.name) - here)
        sagged = max(0.0, load.top + _CARRIED_OVER / 2 - self._scene.bottom(load.name))
        return np.array([*aim[:2], max(load.height, here[2] + sagged)])

    def _lower(self, load: Carried) -> Plan:
        """Bring the object down until it stands, or counts as there, or the hand is as low as it may go."""
        scene, hand, place = self._scene, self._hand, load.place
        settled = hand.settling()
        clearance = 0.0 if place.entry is not None else 0.004

        def down() -> Vector:
            gap = scene.bottom(load.name) - place.point[2] - clearance
            height = max(hand.position[2] - gap, place.lowest_hand)
            return np.array([*self._over(load, place.point)[:2], height])

        yield from hand.move(
            down, load.grasp.rotation, within=0.006, limit=60, speed=0.5,
            until=lambda: settled() or scene.holds(load.goal),
        )  # fmt: skip

    def _withdraw(self, load: Carried) -> Plan:
        """Let go and move out of the way."""
        hand, here = self._hand, self._hand.position
        yield from hand.open(4)
        if load.place.entry is not None:
            here = here + 0.12 * load.place.entry
            yield from hand.move(here, load.grasp.rotation, within=0.03, limit=25)
        yield from hand.move(here + 0.12 * UP, load.grasp.rotation, within=0.03, limit=25)


def _way_in(place: Spot) -> Vector:
    """What an object is carried to first: its spot, or the place before it where there is a roof."""
    return place.point if place.entry is None else place.point + _OUTSIDE * place.entry
