"""Has the task been solved? Meta-World's own conditions for its ten MT10 tasks, without its reward.

Meta-World decides success inside `evaluate_state`, after a shaped reward that we never use and that costs up to three
times the physics. These are the same comparisons on the same arrays; a test plays both side by side. Tasks without an
entry are asked through `evaluate_state`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_norm = np.linalg.norm


def _within(radius: float) -> Callable[[Any], bool]:
    """The object's distance to its target."""
    return lambda env: bool(_norm(env._get_pos_objects() - env._target_pos) <= radius)


def _within_along(axis: int, radius: float) -> Callable[[Any], bool]:
    """The object's distance to its target along one axis."""
    return lambda env: bool(abs(env._get_pos_objects()[axis] - env._target_pos[axis]) <= radius)


def _gripper_within(radius: float) -> Callable[[Any], bool]:
    return lambda env: bool(_norm(env.tcp_center - env._target_pos) <= radius)


def _peg_inserted(env: Any) -> bool:
    offset = env._get_site_pos("pegHead") - env._target_pos
    return bool(_norm(offset * np.array([1.0, 2.0, 2.0])) <= 0.07)


SUCCESS: dict[str, Callable[[Any], bool]] = {
    "button-press-topdown": _within_along(2, 0.024),
    "door-open": _within_along(0, 0.08),
    "drawer-close": _within(0.05 + 0.015),
    "drawer-open": _within(0.03),
    "peg-insert-side": _peg_inserted,
    "pick-place": _within(0.07),
    "push": _within(0.05),
    "reach": _gripper_within(0.05),
    "window-close": _within_along(0, 0.05),
    "window-open": _within_along(0, 0.05),
}
"""Metres, from each task's `evaluate_state` in metaworld 3.1.1."""
