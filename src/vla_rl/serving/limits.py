"""Limits that every action keeps which leaves a server, or which our client hands to a robot.

    limits = ActionLimits(7, low=[-1], high=[1], change=[0.1])
    keep = LimitKeeper(limits)                 # one for each conversation: it remembers the last action
    actions = keep(actions)                    # (horizon, A); RefusedError where nothing may leave

Needs numpy alone. Limits are in the unit of the actions as they leave, and are numbers of float32, as the actions are:
so what leaves is within them to the bit.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np

LOG = logging.getLogger(__name__)

POSITION = 3
"""So many of an action's first numbers are a position, where there is a workspace box."""
KINDS = ("bounds", "box", "change")


@dataclass(frozen=True)
class Rules:
    """What a server asks of its clients, and of itself; 0 and false ask nothing."""

    idle: float = 0.0
    """Seconds without a request, or in which an answer is not read, after which a client is hung up on."""
    answer: float = 0.0
    """Seconds from a request to its answer. What takes longer is not sent: the robot has moved on."""
    fresh: bool = False
    """Every request must have a sequence number."""

    def __post_init__(self) -> None:
        for name in ("idle", "answer"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected seconds of at least 0")


class RefusedError(Exception):
    """These actions must not leave."""


class ActionLimits:
    """What each of an action's A numbers may be, and by how much it may differ from the one before."""

    def __init__(
        self,
        action_dim: int,
        low: Sequence[float] = (),
        high: Sequence[float] = (),
        change: Sequence[float] = (),
        box_low: Sequence[float] = (),
        box_high: Sequence[float] = (),
        beyond: Literal["clip", "refuse"] = "clip",
    ) -> None:
        """low, high, change: one number for each dimension, one for all, or none. box_low, box_high: x, y, z, of which
        an action's first three numbers are one. beyond: whether an action beyond them is clipped or refused.

        ValueError for limits that do not fit the action, or that no action could keep.
        """
        self.action_dim, self.beyond = action_dim, beyond
        if beyond not in ("clip", "refuse"):
            raise ValueError(f"beyond: expected clip or refuse, got {beyond!r}")
        self.low = self._each(low, -np.inf, "low")
        self.high = self._each(high, np.inf, "high")
        self.change = self._each(change, np.inf, "change")
        self.box_low, self.box_high = (
            self._box(corner, infinite, name)
            for corner, infinite, name in (
                (box_low, -np.inf, "box_low"),
                (box_high, np.inf, "box_high"),
            )
        )
        if (self.change <= 0).any():
            raise ValueError("change: expected numbers above 0")
        self.least = np.maximum(self.low, self.box_low)
        self.most = np.minimum(self.high, self.box_high)
        for at in np.flatnonzero(self.least > self.most).tolist():
            raise ValueError(
                f"no action keeps the limits: number {at} would be at least {self.least[at]:g} and at most "
                f"{self.most[at]:g}"
            )

    @property
    def any(self) -> bool:
        """Whether anything is limited at all."""
        ends = (self.least, self.most, self.change)
        return any(bool(np.isfinite(end).any()) for end in ends)

    def _each(self, given: Sequence[float], otherwise: float, name: str) -> np.ndarray:
        values = np.asarray(given, np.float32).reshape(-1)
        if len(values) not in (0, 1, self.action_dim):
            raise ValueError(
                f"{name}: expected {self.action_dim} numbers, one for each of an action's, or one for all, got "
                f"{len(values)}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite numbers")
        return np.full(self.action_dim, values if len(values) else otherwise, np.float32)

    def _box(self, given: Sequence[float], otherwise: float, name: str) -> np.ndarray:
        whole = np.full(self.action_dim, otherwise, np.float32)
        corner = np.asarray(given, np.float32).reshape(-1)
        if len(corner):
            if len(corner) != POSITION or self.action_dim < POSITION:
                raise ValueError(
                    f"{name}: expected x, y and z for actions of 3 numbers or more, got {len(corner)} numbers for "
                    f"actions of {self.action_dim}"
                )
            if not np.isfinite(corner).all():
                raise ValueError(f"{name}: expected finite numbers")
            whole[:POSITION] = corner
        return whole


class LimitKeeper:
    """Keeps one conversation's actions within the limits, one after the other, and counts what it did."""

    def __init__(self, limits: ActionLimits | None, who: str = "a client") -> None:
        """limits: None lets every finite action pass. who: what the log calls the conversation."""
        self.limits, self.who = limits, who
        self.last: np.ndarray | None = None  # (A,)
        """The action before the next one; None where nothing is known of it."""
        self.counts: Counter[str] = Counter()
        """Actions in all, those of them that were changed, for which limit, and answers that were refused."""

    def __call__(self, actions: Any) -> Any:
        """The actions, (horizon, A), within the limits: float32 where there are any.

        RefusedError for what is not finite, and where `beyond` is refuse for what is beyond; the last action stays
        then what it was.
        """
        given = np.asarray(actions)
        try:
            kept, found = self._kept(given)
        except RefusedError as error:
            self.refuse(str(error))
        self.counts["actions"] += len(given)
        for kind, count in found.items():
            self._count(kind, count, f"{count} of {len(given)} actions clipped by {kind}")
        if len(kept):
            self.last = np.array(kept[-1], np.float32)
        return kept

    def refuse(self, why: str) -> NoReturn:
        """Count an answer that must not leave for another reason, and raise RefusedError."""
        self._count("refused", 1, f"an answer is refused: {why}")
        raise RefusedError(why)

    def forget(self) -> None:
        """An episode begins: nothing is known of the action before."""
        self.last = None

    def _kept(self, given: np.ndarray) -> tuple[np.ndarray, Counter[str]]:
        if given.dtype.kind not in "fiu" or not np.isfinite(given).all():
            raise RefusedError("an action is not made of finite numbers")
        limits, found = self.limits, Counter[str]()
        if limits is None:
            return given, found
        if given.ndim != 2 or given.shape[1] != limits.action_dim:
            raise RefusedError(
                f"the limits are for actions of {limits.action_dim} numbers, the policy gave {given.shape}"
            )
        with np.errstate(over="ignore"):
            kept = given.astype(np.float32)
        if not np.isfinite(kept).all():
            raise RefusedError("an action is too large for a number of float32")
        last = self.last
        for row in range(len(kept)):
            wanted = kept[row].copy()
            kept[row] = self._one(wanted, last, row, found)
            last = kept[row]
        return kept, found

    def _one(
        self, wanted: np.ndarray, last: np.ndarray | None, row: int, found: Counter[str]
    ) -> np.ndarray:
        """The nearest action within the limits, after the action `last`."""
        limits = self.limits
        assert limits is not None
        bounded = np.clip(wanted, limits.low, limits.high)
        boxed = np.clip(bounded, limits.box_low, limits.box_high)
        near = boxed
        if last is not None:
            near = stepped(last, boxed, limits.change)
            outside = (near < limits.least) | (near > limits.most)
            if outside.any():  # the robot is beyond the limits already
                at = int(np.flatnonzero(outside)[0])
                raise RefusedError(
                    f"the last action's number {at} is {last[at]:g}: no action is both within the limits and within "
                    "one change of it; bring the robot back by hand"
                )
        stages = (("bounds", wanted, bounded), ("box", bounded, boxed), ("change", boxed, near))
        for kind, before, after in stages:
            if (before == after).all():
                continue
            if limits.beyond == "refuse":
                at = int(np.flatnonzero(before != after)[0])
                raise RefusedError(
                    f"action {row}: number {at} is {before[at]:g}, within the limits ({kind}) it would be {after[at]:g}"
                )
            found[kind] += 1
        return near

    def _count(self, kind: str, count: int, what: str) -> None:
        """Said the first time of each kind, then whenever it has become ten times as often."""
        before, now = self.counts[kind], self.counts[kind] + count
        self.counts[kind] = now
        if before == 0 or len(str(now)) > len(str(before)):
            LOG.warning("%s: %s; %d so far", self.who, what, now)

    def report(self) -> str:
        """The counts, in a line."""
        counts = self.counts
        clipped = ", ".join(f"{counts[kind]} by {kind}" for kind in KINDS)
        return (
            f"{counts['actions']} actions, clipped {clipped}; {counts['refused']} answers refused"
        )


def stepped(last: np.ndarray, wanted: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The action nearest to `wanted` that is within `change` of `last`, rounding included; all are float32 (A,)."""
    from_last = wanted.astype(np.float64) - last
    near = (last + np.clip(from_last, -change.astype(np.float64), change)).astype(np.float32)
    near = np.where(np.abs(from_last) <= change, wanted, near)
    beyond = np.abs(near.astype(np.float64) - last) > change
    return np.where(beyond, np.nextafter(near, last), near).astype(np.float32)
