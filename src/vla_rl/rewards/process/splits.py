"""Which episodes a reward model learns from, and which measure it.

The split is by whole episodes. All episodes of one (task, initial state) lie on one side: where they start alike their
first images are the same, so apart they would give the answer away.

A reward model that is trained further keeps the split of the one it started from. What that one learned from, or
started from itself, never measures its successor. split.json says so on disk:

    training, validation, held_out    episodes of the datasets: [number, task, initial state, who played, id]
    ancestors                         episodes of earlier reward models that are not among them, for successors

The id is made of an episode's instruction and actions: an episode is known again wherever its dataset lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np
from jaxtyping import Int64

from vla_rl.config import UserError, nearest
from vla_rl.rewards.trajectories import Trajectory
from vla_rl.runtime.external import read_json
from vla_rl.runtime.files import write_json

SPLIT_FILE = "split.json"
Side = Literal["training", "validation"]
SIDES: tuple[Side, Side] = ("training", "validation")
_ANYWHERE = -1
"""An initial state that is not known."""


@dataclass(frozen=True)
class Split:
    """Which episodes are learned from, which measure, and which belong to tasks that are never learned from."""

    training: Int64[np.ndarray, " T"]
    validation: Int64[np.ndarray, " V"]
    held_out: Int64[np.ndarray, " H"]


# --------------------------------------------------------------------------------------------------
# On disk

_Entry = tuple[int, str, int, str, str]
_OldEntry = tuple[int, str, int, str]
_Ancestor = tuple[str, int, str]


@dataclass(frozen=True)
class _Ancestors:
    training: list[_Ancestor] = field(default_factory=list)
    validation: list[_Ancestor] = field(default_factory=list)


@dataclass(frozen=True)
class StoredSplit:
    """split.json. Earlier versions wrote no ids and no ancestors."""

    training: list[_Entry | _OldEntry]
    validation: list[_Entry | _OldEntry]
    held_out: list[_Entry | _OldEntry]
    ancestors: _Ancestors = field(default_factory=_Ancestors)

    @property
    def entries(self) -> Iterator[tuple[str, _Entry]]:
        """(side, entry) of every episode; the id of entries without one is empty."""
        for side in (*SIDES, "held_out"):
            for entry in getattr(self, side):
                yield side, cast(_Entry, (*entry, "")[:5])


def read_split(run: Path) -> StoredSplit | None:
    """The split of a training run; None if `run` is none. UserError where the file is damaged."""
    path = run / SPLIT_FILE
    return read_json(path, StoredSplit, inside=run) if path.is_file() else None


def split_of(run: Path, trajectories: Sequence[Trajectory]) -> Split:
    """The split that a training run made of its episodes. UserError if the datasets are no longer what they were."""
    stored = read_split(run)
    sides: dict[str, list[int]] = {"training": [], "validation": [], "held_out": []}
    seen: list[int] = []
    for side, (number, *described) in stored.entries if stored is not None else ():
        known = described if described[3] else described[:3]
        if not 0 <= number < len(trajectories):
            raise _changed(run)
        if list(_described(trajectories[number])[: len(known)]) != known:
            raise _changed(run)
        sides[side].append(number)
        seen.append(number)
    if sorted(seen) != list(range(len(trajectories))):
        raise _changed(run)
    return Split(*(np.array(sorted(rows), dtype=np.int64) for rows in sides.values()))


def _changed(run: Path) -> UserError:
    return UserError(
        f"the datasets of {run} have changed since the reward model was trained, so the held-out episodes cannot be "
        "told from the others: put them back, or name datasets of its own to measure on"
    )


def write_split(
    run: Path, split: Split, trajectories: Sequence[Trajectory], parent: StoredSplit | None
) -> None:
    """split.json."""
    record: dict[str, object] = {
        name: [[int(i), *_described(trajectories[i])] for i in getattr(split, name)]
        for name in (*SIDES, "held_out")
    }
    ids = {_described(trajectory)[3] for trajectory in trajectories}
    record["ancestors"] = {
        side: [[task, state, name] for task, state, name in known if name not in ids]
        for side, known in _known(parent).items()
    }
    write_json(run / SPLIT_FILE, record)


def _described(trajectory: Trajectory) -> tuple[str, int, str, str]:
    digest = hashlib.sha256(trajectory.instruction.encode())
    # the first action of each turn: the others depend on the chunk, images on their size
    digest.update(np.ascontiguousarray(trajectory.actions[:, 0], dtype="<f4").tobytes())
    return trajectory.task, trajectory.initial_state, trajectory.source, digest.hexdigest()[:16]


def _known(parent: StoredSplit | None) -> dict[Side, list[_Ancestor]]:
    """All episodes of which a reward model's side is known, those of its own ancestors among them."""
    known: dict[Side, list[_Ancestor]] = {"training": [], "validation": []}
    if parent is None:
        return known
    for side, (_, task, state, _, name) in parent.entries:
        if side in known:
            known[cast(Side, side)].append((task, state, name))
    for side in SIDES:
        known[side] += getattr(parent.ancestors, side)
    return known


# --------------------------------------------------------------------------------------------------
# Splitting


def split_episodes(
    trajectories: Sequence[Trajectory],
    fraction: float,
    held_out_tasks: Sequence[str],
    rng: np.random.Generator,
    parent: StoredSplit | None = None,
) -> Split:
    """By whole episodes, for every task alike; all episodes of one initial state on one side.

    Where the initial state is not known, an episode is on its own. Of a task with n initial states round(fraction n)
    are held out, at least one where there are two and the fraction is positive, never all.

    parent: The split of the reward model that is trained further. Its sides are kept. What it does not know is split so
    that the shares come out as said, as far as they can.

    Raises UserError for held-out tasks that do not exist or that the parent has learned, or when nothing would be left.
    """
    names = [(t.task, t.instruction) for t in trajectories]
    _require_tasks(names, held_out_tasks)
    apart = np.array([bool({*pair} & {*held_out_tasks}) for pair in names])
    sides = _inherited(trajectories, parent)
    _require_new(trajectories, apart, sides)
    validation = np.zeros(len(trajectories), dtype=bool)
    for instruction in sorted({t.instruction for t in trajectories}):
        own = [
            i for i, t in enumerate(trajectories) if t.instruction == instruction and not apart[i]
        ]
        group = _groups(trajectories, own)
        chosen = _choose(group, sides, fraction, rng)
        validation[[i for i in own if group[i] in chosen]] = True
    training = ~validation & ~apart
    if not training.any():
        raise UserError(
            "no episode is left to learn from: hold out fewer tasks, or add episodes that the reward model has not "
            "been measured on"
            if parent
            else "all tasks are held out, nothing is left to learn from: hold out fewer"
        )
    return Split(*(np.flatnonzero(mask) for mask in (training, validation & ~apart, apart)))


def _groups(trajectories: Sequence[Trajectory], own: Sequence[int]) -> dict[int, int]:
    """Episode -> what it shares with those that begin alike: their initial state, or a number of its own."""
    known = {trajectories[i].initial_state for i in own} - {_ANYWHERE}
    alone = max(known, default=0) + 1
    return {
        i: alone + i
        if len(known) < 2 or trajectories[i].initial_state == _ANYWHERE
        else trajectories[i].initial_state
        for i in own
    }


def _choose(
    group: dict[int, int],
    sides: Sequence[Side | None],
    fraction: float,
    rng: np.random.Generator,
) -> set[int]:
    """The groups that measure: those that did before, and as many of the new ones as are missing."""
    before: dict[int, Side] = {}
    for i, number in group.items():
        side = sides[i]
        if side is not None and before.get(number) != "training":  # learned from once is enough
            before[number] = side
    groups = rng.permutation(sorted(set(group.values()))).tolist()
    count = round(fraction * len(groups))
    if fraction > 0 and len(groups) > 1:
        count = min(max(count, 1), len(groups) - 1)
    kept = {number for number, side in before.items() if side == "validation"}
    fresh = [number for number in groups if number not in before]
    return kept | set(fresh[: max(0, count - len(kept))])


def _inherited(trajectories: Sequence[Trajectory], parent: StoredSplit | None) -> list[Side | None]:
    """The side of each episode that the parent knows: by its id, else by its initial state."""
    ids: dict[str, Side] = {}
    states: dict[tuple[str, int], Side] = {}
    known = _known(parent)
    for side in reversed(SIDES):  # training last: it outweighs
        for task, state, name in known[side]:
            ids[name] = side
            states[task, state] = side
    ids.pop("", None)
    numbered = _by_number(trajectories, parent)
    found: list[Side | None] = []
    for i, trajectory in enumerate(trajectories):
        task, state, _, name = _described(trajectory)
        by_state = None if state == _ANYWHERE else states.get((task, state))
        found.append(ids.get(name) or by_state or numbered.get(i))
    return found


def _by_number(trajectories: Sequence[Trajectory], parent: StoredSplit | None) -> dict[int, Side]:
    """Sides of episodes of unknown initial state in a split without ids: by their place in the datasets.

    UserError where the parent's datasets do not come first, so that its episodes cannot be told from others.
    """
    if parent is None:
        return {}
    nameless = [
        (side, entry) for side, entry in parent.entries if not entry[4] and entry[2] == _ANYWHERE
    ]
    sides: dict[int, Side] = {}
    for side, (number, *described) in nameless:
        there = 0 <= number < len(trajectories)
        if not there or list(_described(trajectories[number])[:3]) != described[:3]:
            raise UserError(
                "the reward model to train further was trained on episodes without numbered initial states, so they "
                "can only be told by their place: name its datasets first, in its order"
            )
        if side in SIDES:
            sides[number] = cast(Side, side)
    return sides


def _require_new(
    trajectories: Sequence[Trajectory], apart: np.ndarray, sides: Sequence[Side | None]
) -> None:
    """UserError for a task that is to be held out although the parent has learned it."""
    for i in np.flatnonzero(apart).tolist():
        if sides[i] == "training":
            raise UserError(
                f"reward.held_out_tasks: {trajectories[i].task!r} was learned by the reward model that reward.start "
                "names: hold out another task, or start from the backbone"
            )


def _require_tasks(names: Sequence[tuple[str, str]], wanted: Sequence[str]) -> None:
    known = sorted({name for pair in names for name in pair})
    for task in wanted:
        if task not in known:
            raise UserError(
                f"reward.held_out_tasks: there is no task {task!r}.{nearest(task, known)}"
            )
