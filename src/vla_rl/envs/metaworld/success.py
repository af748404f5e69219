"""Has the task been solved? Meta-World's own conditions for its ten MT10 tasks, without its reward.

Meta-World decides success inside `evaluate_state`, after a shaped reward that we never use and that costs up to three
times the physics. These are the same comparisons on the same arrays; a test plays both side by side. Tasks without an
entry are asked through `evaluate_state`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


def _norm(vector: Any) -> float:
    return float(np.linalg.norm(vector))


@dataclass(frozen=True)
class Condition:
    """Success is a distance of no more than `radius`."""

    distance: Callable[[Any], float]
    """What is still to go, m."""
    radius: float

    def __call__(self, env: Any) -> bool:
        return bool(self.distance(env) <= self.radius)


def _within(radius: float) -> Condition:
    """The object's distance to its target."""
    return Condition(lambda env: _norm(env._get_pos_objects() - env._target_pos), radius)


def _within_along(axis: int, radius: float) -> Condition:
    """The object's distance to its target along one axis."""
    return Condition(lambda env: abs(env._get_pos_objects()[axis] - env._target_pos[axis]), radius)


def _gripper_within(radius: float) -> Condition:
    return Condition(lambda env: _norm(env.tcp_center - env._target_pos), radius)


def _peg_head_to_hole(env: Any) -> float:
    offset = env._get_site_pos("pegHead") - env._target_pos
    return _norm(offset * np.array([1.0, 2.0, 2.0]))


SUCCESS: dict[str, Condition] = {
    "button-press-topdown": _within_along(2, 0.024),
    "door-open": _within_along(0, 0.08),
    "drawer-close": _within(0.05 + 0.015),
    "drawer-open": _within(0.03),
    "peg-insert-side": Condition(_peg_head_to_hole, 0.07),
    "pick-place": _within(0.07),
    "push": _within(0.05),
    "reach": _gripper_within(0.05),
    "window-close": _within_along(0, 0.05),
    "window-open": _within_along(0, 0.05),
}
"""Metres, from each task's `evaluate_state` in metaworld 3.1.1."""
