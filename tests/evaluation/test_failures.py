"""Kinds of failures, read from made-up traces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vla_rl.envs.trace import EpisodeTrace, GoalKind, GoalTrace, TracedGoal
from vla_rl.evaluation.failures import KINDS, MEANING, Limits, classify, progress

STEPS = 100


def goal(kind: GoalKind, remaining: np.ndarray, radius: float | None = 0.05, **marks) -> GoalTrace:
    """A goal whose object moves along x by what is no longer remaining. marks: first and last step of each flag."""
    flags = {}
    for name in ("touching", "held", "reached"):
        flags[name] = np.zeros(STEPS, dtype=bool)
        if name in marks:
            first, last = marks[name]
            flags[name][first : last + 1] = True
    position = np.zeros((STEPS, 3))
    position[:, 0] = remaining[0] - remaining
    position[:, 2] = marks.get("height", np.zeros(STEPS))
    return GoalTrace(
        TracedGoal("it", kind, radius),
        flags["touching"],
        flags["held"],
        position,
        remaining,
        flags["reached"],
    )


def episode(*goals: GoalTrace, **other) -> EpisodeTrace:
    nothing = np.zeros(STEPS)
    given = {
        "hand": np.full((STEPS, 3), 0.3),
        "opening": nothing + 1,
        "closing": nothing - 1,
        "held_another": nothing.astype(bool),
    }
    return EpisodeTrace(goals=goals, **(given | other))


def way(*points: tuple[int, float]) -> np.ndarray:
    """What remains, straight lines between (step, share of 0.25 m)."""
    steps, shares = zip(*points, strict=True)
    return 0.25 * np.interp(np.arange(STEPS), steps, shares)


STILL = way((0, 1))


@pytest.mark.parametrize(
    ("remaining", "marks", "kind"),
    [
        (STILL, {}, "never touched"),
        (STILL, {"touching": (0, 5)}, "never touched"),  # the reset left it so
        (STILL, {"touching": (20, 21)}, "touched, not moved"),
        (way((0, 1), (40, 1), (50, 0.6)), {}, "moved too little"),  # a knock between two moments
        (way((0, 1), (20, 1), (30, 1.3)), {"touching": (20, 25)}, "wrong way"),
        (way((0, 1), (30, 0.5), (60, 0.95)), {"touching": (5, 25)}, "moved back"),
        (way((0, 1), (30, 0.3), (99, 1.5)), {"touching": (5, 25)}, "moved back"),
        (way((0, 1), (50, 1), (99, 0.5)), {"touching": (50, 99)}, "time over, other"),
        (way((0, 1), (40, 0.25)), {"touching": (5, 40)}, "time over, almost"),
    ],
)
def test_what_is_moved(remaining: np.ndarray, marks: dict, kind: str):
    assert classify(episode(goal("move", remaining, **marks))) == kind


def test_a_hand_that_has_to_be_somewhere_touches_nothing():
    assert classify(episode(goal("reach", STILL))) == "moved too little"
    assert classify(episode(goal("reach", way((0, 1), (99, 1.4))))) == "wrong way"


LIFT = np.interp(np.arange(STEPS), [40, 50, 60, 65], [0.0, 0.1, 0.1, 0.0])
CLOSE = np.where(np.arange(STEPS) > 30, 1.0, -1.0)
LET_GO = np.where((np.arange(STEPS) > 30) & (np.arange(STEPS) < 59), 1.0, -1.0)
AT_IT = np.zeros((STEPS, 3))


@pytest.mark.parametrize(
    ("marks", "other", "kind"),
    [
        ({}, {}, "never touched"),
        ({"touching": (30, 40)}, {}, "missed grasp"),
        ({"touching": (30, 40), "held": (35, 40)}, {}, "missed grasp"),
        ({"touching": (30, 40)}, {"closing": -CLOSE * 0 + 1, "opening": CLOSE * 0 + 0.2}, "closed too early"),
        # closed beside it, without a contact
        ({}, {"closing": CLOSE * 0 + 1, "opening": CLOSE * 0, "hand": AT_IT + 0.03}, "closed too early"),
        # closed far away is no attempt
        ({}, {"closing": CLOSE * 0 + 1, "opening": CLOSE * 0}, "never touched"),
        # told to close, but still wide open when it arrives
        ({"touching": (30, 40)}, {"closing": CLOSE * 0 + 1}, "missed grasp"),
        ({}, {"held_another": np.arange(STEPS) > 50}, "wrong object"),
        ({"touching": (30, 60), "held": (35, 58), "height": LIFT}, {"closing": CLOSE}, "dropped"),
        ({"touching": (30, 60), "held": (35, 58), "height": LIFT}, {"closing": LET_GO}, "wrong place"),
        ({"touching": (30, 99), "held": (35, 99), "height": LIFT}, {"closing": CLOSE}, "time over, other"),
    ],
)  # fmt: skip
def test_what_is_grasped(marks: dict, other: dict, kind: str):
    assert classify(episode(goal("grasp", STILL, **marks), **other)) == kind


def test_still_held_and_almost_there():
    held = {"touching": (30, 99), "held": (35, 99), "height": LIFT}
    near = way((0, 1), (90, 0.25))
    assert classify(episode(goal("grasp", near, **held))) == "time over, almost"
    near = way((0, 1), (90, 0.15))  # 4 cm, and nobody knows how near is near enough
    assert classify(episode(goal("grasp", near, radius=None, **held))) == "time over, almost"


def test_two_steps_are_no_grasp():
    marks = {"touching": (30, 40), "held": (50, 51), "height": LIFT}
    assert classify(episode(goal("grasp", STILL, **marks))) == "missed grasp"
    short = Limits(held_steps=2)
    assert classify(episode(goal("grasp", STILL, **marks)), short) == "wrong place"


def test_the_first_goal_that_was_missed_decides():
    done = goal("move", STILL, reached=(0, 99))
    missed = goal("move", STILL, touching=(20, 21))
    assert classify(episode(done, missed)) == "touched, not moved"
    assert classify(episode(missed, done)) == "touched, not moved"
    with pytest.raises(ValueError, match="no failure"):
        classify(episode(done))


def test_progress():
    made = progress(goal("move", way((0, 1), (99, 0.2))))
    assert made[0] == pytest.approx(0.0)
    assert made[-1] == pytest.approx(1.0)  # 5 cm remain, which is the radius
    unknown = goal("move", way((0, 1), (99, 0.2)), radius=None)
    assert progress(unknown)[-1] == pytest.approx(0.8)
    at_goal = replace(unknown, remaining=np.zeros(STEPS))
    assert np.isfinite(progress(at_goal)).all()


def test_every_kind_has_a_meaning_and_a_place():
    placed = {kind for kinds in KINDS.values() for kind in kinds}
    assert placed | {"not told"} == set(MEANING)


@pytest.mark.parametrize(("goals", "moments"), [([], []), ([TracedGoal("it", "move")], [])])
def test_a_trace_needs_goals_and_moments(goals, moments):
    with pytest.raises(ValueError, match="a trace needs"):
        EpisodeTrace.of(goals, moments)
