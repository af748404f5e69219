"""Why an episode failed, read from what happened to its objects.

One kind for each failed episode, the first that fits from above. Which kinds there are depends on what has to be done:
an object that is grasped can be dropped, a drawer cannot. The kinds go by the first goal that was not reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vla_rl.envs.trace import EpisodeTrace, GoalKind, GoalTrace

FailureKind = Literal[
    "never touched",
    "closed too early",
    "wrong object",
    "missed grasp",
    "dropped",
    "wrong place",
    "touched, not moved",
    "wrong way",
    "moved back",
    "moved too little",
    "time over, almost",
    "time over, other",
    "not told",
]

MEANING: dict[str, str] = {
    "never touched": "the robot never touched the object, and the object never moved",
    "closed too early": "the gripper was closed already when it reached the object, and never lifted it",
    "wrong object": "both fingers held another object, and never the right one",
    "missed grasp": "the object was touched, but never lifted between the fingers",
    "dropped": "it was lifted and came loose while the gripper was told to hold it",
    "wrong place": "it was lifted, and let go of where it should not be",
    "touched, not moved": "it was touched, but neither closer to its goal nor farther from it afterwards",
    "wrong way": "at the end more is to go than at the beginning",
    "moved back": "it had come closer by a good part of the way and went back again",
    "moved too little": "it was moved the right way, came to rest, and most of the way or some of it is left",
    "time over, almost": "hardly anything was left to go when time was over",
    "time over, other": "it was still on its way, or still held, when time was over",
    "not told": "the simulator does not say what happens in it",
}
"""What each `FailureKind` means, in the words of the table."""

KINDS: dict[GoalKind, tuple[FailureKind, ...]] = {
    "grasp": (
        "never touched",
        "closed too early",
        "wrong object",
        "missed grasp",
        "dropped",
        "wrong place",
        "time over, almost",
        "time over, other",
    ),
    "move": (
        "never touched",
        "touched, not moved",
        "wrong way",
        "moved back",
        "moved too little",
        "time over, almost",
        "time over, other",
    ),
    "reach": (
        "wrong way",
        "moved back",
        "moved too little",
        "time over, almost",
        "time over, other",
    ),
}


@dataclass(frozen=True)
class Limits:
    """Where one kind ends and another begins."""

    moved: float = 0.01
    """An object that is so far from its beginning (m) was touched, whether or not a contact was seen. Less than that
    an object may settle by itself: a drawer that the hand overlaps at the reset is moved by 6 mm."""
    lifted: float = 0.02
    """Height above its beginning (m) from which an object counts as lifted."""
    held_steps: int = 3
    """Simulator steps between both fingers in a row that count as holding."""
    closing: float = 0.2
    """Command from which the gripper is told to close, of -1 (open) .. 1 (closed)."""
    closed: float = 0.6
    """Opening below which a gripper that is told to close counts as closed (0..1)."""
    near: float = 0.06
    """From hand to object (m): a gripper that is closed there was meant for it."""
    progress: float = 0.1
    """Share of the way that counts as having moved closer or farther."""
    back: float = 0.25
    """Share of the way that is lost again where it `moved back`."""
    almost: float = 0.8
    """Share of the way from which it was almost there."""
    almost_metres: float = 0.05
    """The same for a goal without a known radius that an object is carried to."""
    still_moving: float = 0.05
    """Share of the way made in the last `last` of the episode by what is still on its way."""
    last: float = 0.15


def classify(trace: EpisodeTrace, limits: Limits = Limits()) -> FailureKind:
    """The kind of a failed episode. ValueError for an episode that reached all its goals."""
    missed = [goal for goal in trace.goals if not goal.reached[-1]]
    if not missed:
        raise ValueError("the episode reached all its goals: there is no failure to name")
    goal = missed[0]
    if goal.goal.kind == "grasp":
        return _of_grasp(trace, goal, limits)
    return _of_move(goal, limits)


def progress(goal: GoalTrace) -> np.ndarray:
    """Share of the way made after each simulator step: 0 as at the beginning, 1 where the goal is reached, [S]."""
    way = goal.remaining[0] - (goal.goal.radius or 0.0)
    if not way > 0:  # it began at its goal, or nobody knows how far it is
        way = max(float(goal.remaining[0]), 1e-6)
    return (goal.remaining[0] - goal.remaining) / way


def _touched(goal: GoalTrace, limits: Limits) -> bool:
    """Contacts that the reset left behind do not count until they have ended once."""
    since_reset = np.logical_and.accumulate(goal.touching)
    away = np.linalg.norm(goal.position - goal.position[0], axis=1)
    return bool((goal.touching & ~since_reset).any() or (away > limits.moved).any())


def _of_move(goal: GoalTrace, limits: Limits) -> FailureKind:
    made = progress(goal)
    end, best = float(made[-1]), float(made.max())
    if goal.goal.kind == "move" and not _touched(goal, limits):
        return "never touched"
    if best > limits.back and best - end > limits.back:
        return "moved back"
    if end < -limits.progress:
        return "wrong way"
    if end < limits.progress and goal.goal.kind == "move":
        return "touched, not moved"
    if end >= limits.almost:
        return "time over, almost"
    before = made[-1 - max(1, round(limits.last * (len(made) - 1)))]
    return "time over, other" if end - before > limits.still_moving else "moved too little"


def _of_grasp(trace: EpisodeTrace, goal: GoalTrace, limits: Limits) -> FailureKind:
    held = _in_a_row(goal.held, limits.held_steps)
    height = goal.position[:, 2] - goal.position[0, 2]
    lifted = held & (height > limits.lifted)
    if not lifted.any():
        return _never_lifted(trace, goal, held, limits)
    if not held[-1]:
        # at rest near its goal it is in the wrong place whatever let it go; else the command decides
        loose = int(np.flatnonzero(held)[-1]) + 1
        told = trace.closing[max(0, loose - limits.held_steps) : loose + 1]
        return "dropped" if bool((told > limits.closing).all()) else "wrong place"
    return "time over, almost" if _close_to(goal, limits) else "time over, other"


def _never_lifted(
    trace: EpisodeTrace, goal: GoalTrace, held: np.ndarray, limits: Limits
) -> FailureKind:
    if _in_a_row(trace.held_another, limits.held_steps).any() and not held.any():
        return "wrong object"
    shut = (trace.closing > limits.closing) & (trace.opening < limits.closed)
    away = np.linalg.norm(trace.hand - goal.position, axis=1)
    touched = _touched(goal, limits)
    arrival = int(np.argmax(goal.touching) if goal.touching.any() else np.argmin(away))
    if shut[arrival] and (touched or away[arrival] < limits.near):
        return "closed too early"
    return "missed grasp" if touched else "never touched"


def _close_to(goal: GoalTrace, limits: Limits) -> bool:
    if goal.goal.radius is None:
        return bool(goal.remaining[-1] <= limits.almost_metres)
    return bool(progress(goal)[-1] >= limits.almost)


def _in_a_row(flags: np.ndarray, count: int) -> np.ndarray:
    """Where a flag is up and has been, or will be, for `count` steps in a row in all."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    result = np.zeros(len(flags), dtype=bool)
    for start, end in edges.reshape(-1, 2):
        result[start:end] = end - start >= count
    return result
