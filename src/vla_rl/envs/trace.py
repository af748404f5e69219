"""What happens to the objects of an episode, for whoever wants to know why it failed.

Privileged: contacts, objects and goals are seen, which no policy may. Nothing is recorded unless somebody asks for a
moment, and asking changes nothing in the simulation; so an episode is the same to the bit, traced or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64

GoalKind = Literal["grasp", "move", "reach"]
"""grasp: an object has to be lifted and put somewhere. move: something is pushed, pulled, opened or pressed. reach:
the hand itself has to be somewhere; there is no object."""


@dataclass(frozen=True)
class TracedGoal:
    """One thing that has to be achieved in the episode."""

    name: str
    kind: GoalKind
    radius: float | None = None
    """It is reached where no more than this remains, in the unit of `GoalMoment.remaining`; None: not known."""


@dataclass(frozen=True)
class GoalMoment:
    """How things stand with one goal after one simulator step."""

    touching: bool  # the robot touches the object at this very moment; a knock may fall between two
    held: bool  # both fingers touch it
    position: Float64[np.ndarray, " 3"]  # of the object, m
    remaining: float  # what is still to go, in metres, or radians of a hinge
    reached: bool


@dataclass(frozen=True)
class Moment:
    """How things stand after one simulator step."""

    hand: Float64[np.ndarray, " 3"]  # between the fingertips, m
    opening: float  # of the gripper, 0 closed .. 1 open
    closing: float  # commanded, -1 opens .. 1 closes
    held_another: bool  # both fingers touch an object that no goal is about
    goals: tuple[GoalMoment, ...]


@runtime_checkable
class Traced(Protocol):
    """An environment that tells what happens in it."""

    def traced_goals(self) -> tuple[TracedGoal, ...]:
        """What has to be achieved in the episode being played."""
        ...

    def moment(self) -> Moment:
        """How things stand now; best asked for in `step`'s `on_frame`. Asking changes nothing."""
        ...


def telling(env: Any) -> Traced | None:
    """Who tells what happens in the episode that has begun in `env`; None if its simulator tells nothing.

    In a union of suites that depends on the suite whose task is played.
    """
    played = getattr(env, "simulator", env)
    return played if isinstance(played, Traced) else None


@dataclass(frozen=True)
class GoalTrace:
    """One goal over the simulator steps of an episode; the first row is its beginning."""

    goal: TracedGoal
    touching: Bool[np.ndarray, " S"]
    held: Bool[np.ndarray, " S"]
    position: Float64[np.ndarray, "S 3"]
    remaining: Float64[np.ndarray, " S"]
    reached: Bool[np.ndarray, " S"]


@dataclass(frozen=True)
class EpisodeTrace:
    """An episode, simulator step by simulator step."""

    hand: Float64[np.ndarray, "S 3"]
    opening: Float64[np.ndarray, " S"]
    closing: Float64[np.ndarray, " S"]
    held_another: Bool[np.ndarray, " S"]
    goals: tuple[GoalTrace, ...]

    def __len__(self) -> int:
        return len(self.opening)

    @staticmethod
    def of(goals: Sequence[TracedGoal], moments: Sequence[Moment]) -> EpisodeTrace:
        """The trace that these moments make. ValueError if there are none, or no goals."""
        if not moments or not goals:
            raise ValueError(
                f"a trace needs a moment and a goal or more, got {len(moments)} and {len(goals)}"
            )
        traces = []
        for place, goal in enumerate(goals):
            each = [moment.goals[place] for moment in moments]
            traces.append(
                GoalTrace(
                    goal,
                    np.array([m.touching for m in each], dtype=bool),
                    np.array([m.held for m in each], dtype=bool),
                    np.array([m.position for m in each], dtype=np.float64),
                    np.array([m.remaining for m in each], dtype=np.float64),
                    np.array([m.reached for m in each], dtype=bool),
                )
            )
        return EpisodeTrace(
            np.array([m.hand for m in moments], dtype=np.float64),
            np.array([m.opening for m in moments], dtype=np.float64),
            np.array([m.closing for m in moments], dtype=np.float64),
            np.array([m.held_another for m in moments], dtype=bool),
            tuple(traces),
        )


class Contacts:
    """Who touches whom in a MuJoCo model, asked by groups of shapes (geoms)."""

    def __init__(self, model: Any) -> None:
        self._count = int(model.ngeom)
        self._owner = np.asarray(model.geom_bodyid)
        self._parent = np.asarray(model.body_parentid)

    def shapes(self, belongs: Callable[[int], bool]) -> Bool[np.ndarray, " g"]:
        """The shapes of all bodies for which `belongs` holds, or for one of those that they hang on."""
        inside = np.zeros(len(self._parent), dtype=bool)
        for body in range(1, len(self._parent)):  # MuJoCo lists parents before children
            inside[body] = inside[self._parent[body]] or belongs(body)
        return inside[self._owner]

    def with_shapes(
        self, data: Any, shapes: Bool[np.ndarray, " g"], others: Bool[np.ndarray, " g"]
    ) -> bool:
        """Whether a shape of one group touches a shape of the other now."""
        pairs = np.asarray(data.contact.geom[: data.ncon])
        if not len(pairs):
            return False
        first, second = pairs[:, 0], pairs[:, 1]
        return bool(((shapes[first] & others[second]) | (shapes[second] & others[first])).any())
