"""Simulator states of demonstrations, one before every action but the first, beside the frames of their dataset.

    snapshots/about.json           format, versions of the simulator's packages, the tasks and what their files hold
    snapshots/task-000.parquet     one row a state: episode, frame, and a column for every part of the state

What a state consists of is the simulator's own business (`Env.snapshot`): arrays, numbers and texts, which differ from
task to task. Nothing is pickled. Before the first action an episode is in its initial state, which needs no file. Other
readers of the dataset do not mind the folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import UserError
from vla_rl.config.serialize import from_json
from vla_rl.data.demonstrations import ENVIRONMENT_FILE, STATE
from vla_rl.data.lerobot import LeRobotReader, LeRobotWriter
from vla_rl.data.lerobot.schema import ARROW_TYPES
from vla_rl.data.lerobot.tables import Table, integers, numbers, open_table, texts
from vla_rl.runtime.external import Phrase, check_array, fault, read_json

ABOUT_FILE = "snapshots/about.json"
FORMAT = 1
EPISODE, FRAME = "episode_index", "frame_index"
REMEDY = "Collect the demonstrations again with `vla-rl demos --snapshots`."
LARGEST = 1e30
"""Of a number in a state; accelerations with which a solver starts may be large, and float32 holds no more."""
_SCALARS: dict[str, tuple[type, str]] = {
    "flag": (bool, "bool"),
    "whole": (int, "int64"),
    "number": (float, "float64"),
}


@dataclass(frozen=True)
class Part:
    """What one part of a state is."""

    kind: Literal["array", "whole", "number", "flag", "text"]
    dtype: str = ""
    """Of an array, numpy's name."""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class TaskStates:
    """The file of one task's states."""

    task: str
    file: str
    parts: dict[str, Part]


@dataclass(frozen=True)
class About:
    """snapshots/about.json."""

    format: int
    packages: dict[str, str | None]
    """Versions of what simulated; a state means nothing to another version."""
    tasks: tuple[TaskStates, ...]


class Demonstration(NamedTuple):
    """One demonstration whose states are kept."""

    number: int  # of its episode in the dataset
    task: str
    initial_state: int
    length: int  # actions


# -- writing -------------------------------------------------------------------------------------------


class SnapshotWriter:
    """Adds the states of demonstrations to the dataset that `writer` writes."""

    def __init__(self, writer: LeRobotWriter, packages: Mapping[str, str | None]) -> None:
        self._writer, self._packages = writer, dict(packages)
        self._tasks: list[TaskStates] = []

    def add_task(self, task: str, episodes: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
        """The states of a task's episodes, by number: one for every action, from the first on.

        UserError where the simulator's states hold something that no file can.
        """
        rows = [
            (number, frame, state)
            for number, states in episodes.items()
            for frame, state in enumerate(states)
            if frame > 0
        ]
        if not rows:
            return
        columns: dict[str, Any] = {
            EPISODE: pa.array([row[0] for row in rows], pa.int64()),
            FRAME: pa.array([row[1] for row in rows], pa.int64()),
        }
        parts: dict[str, Part] = {}
        if not all("turns" in state for _, _, state in rows):
            raise _cannot_keep("turns", "missing")
        for name in dict.fromkeys(name for _, _, state in rows for name in state):
            values = [state.get(name) for _, _, state in rows]
            kinds = {_part_of(name, state[name]) for _, _, state in rows if name in state}
            if len(kinds) != 1:
                raise _cannot_keep(name, "a value whose type or shape changes on the way")
            parts[name] = kinds.pop()
            columns[name] = _column(values, parts[name])
        file = f"snapshots/task-{len(self._tasks):03d}.parquet"
        self._writer.add_table(file, pa.table(columns))
        self._tasks.append(TaskStates(task, file, parts))

    def finish(self) -> None:
        """Describe what was added."""
        about = About(FORMAT, self._packages, tuple(self._tasks))
        self._writer.add_json(ABOUT_FILE, asdict(about))


def _part_of(name: str, value: Any) -> Part:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.name in ARROW_TYPES:
        return Part("array", value.dtype.name, value.shape)
    if isinstance(value, str):
        return Part("text")
    for kind, (cls, _) in _SCALARS.items():  # a bool is an int, so in this order
        if isinstance(value, cls):
            return Part(cast(Any, kind))
    raise _cannot_keep(name, f"a {type(value).__name__}")


def _cannot_keep(name: str, what: str) -> UserError:
    return UserError(
        f"the simulator's snapshots cannot be kept in a file: {name!r} is {what}. Leave out --snapshots"
    )


def _column(values: list[Any], part: Part) -> Any:
    if part.kind == "text":
        return pa.array(values, pa.string())
    if part.kind == "array":
        flat = [None if value is None else value.reshape(-1) for value in values]
        return pa.array(flat, pa.list_(ARROW_TYPES[part.dtype]))
    return pa.array(values, ARROW_TYPES[_SCALARS[part.kind][1]])


# -- reading -------------------------------------------------------------------------------------------


class _Column(NamedTuple):
    part: Part
    values: Any  # an array of those that are there, or a list of texts
    places: Int64[np.ndarray, " R"]  # of each row in `values`; -1 where it has none


class DemonstrationSnapshots:
    """The states of a dataset's demonstrations, in memory, checked: `vla-rl demos --snapshots` wrote them.

    Attributes:
        demonstrations: Those that have states, by number.
        env: What they were played in; an action was a turn.
        digest: Of all that is in the files, to tell one dataset from another.
    """

    def __init__(self, folder: str | Path, installed: Mapping[str, str | None]) -> None:
        """Read `folder`. `installed`: versions of the simulator's packages here.

        UserError for a dataset without snapshots, for one of another version of the simulator, and for what is damaged,
        not finite, or does not belong to the dataset's frames.
        """
        self.folder = Path(folder)
        reader = LeRobotReader(self.folder)
        if not (self.folder / ABOUT_FILE).is_file():
            raise UserError(
                f"{self.folder} holds demonstrations without the simulator's snapshots. {REMEDY}"
            )
        self._about = read_json(self.folder / ABOUT_FILE, About, inside=self.folder, remedy=REMEDY)
        self._require_version(installed)
        path = self.folder / ENVIRONMENT_FILE
        said = read_json(path, inside=self.folder, remedy=REMEDY)
        self.env = from_json(EnvConfig, said, source=path)
        self._lengths = [entry.length for entry in reader.episodes]
        self._firsts = [entry.first_frame for entry in reader.episodes]
        self._initial_states = reader.finite_column("initial_state").astype(np.int64)
        self._proprio = reader.finite_column(STATE).astype(np.float32).reshape(len(reader), -1)
        self._digest = hashlib.sha256()
        self._columns: list[dict[str, _Column]] = []
        self._rows: dict[int, tuple[int, int]] = {}  # of a demonstration: file, row of its frame 1
        self.demonstrations: dict[int, Demonstration] = {}
        for task in self._about.tasks:
            self._read_task(task)
        self.digest = self._digest.hexdigest()[:16]

    def snapshot(self, number: int, frame: int) -> dict[str, Any]:
        """The state of a demonstration before its action `frame`, from 1 on, as `Env.restore` takes it."""
        file, first = self._rows[number]
        if not 1 <= frame < self.demonstrations[number].length:
            raise IndexError(f"demonstration {number} has no state before action {frame}")
        row = first + frame - 1
        state: dict[str, Any] = {}
        for name, column in self._columns[file].items():
            place = int(column.places[row])
            if place >= 0:
                value = column.values[place]
                whole = column.part.kind == "array"
                state[name] = value.copy() if whole else _plain(value, column.part.kind)
        return state

    def proprio(self, number: int, frame: int) -> Float32[np.ndarray, " P"]:
        """The proprioception that the dataset has of that moment."""
        return self._proprio[self._firsts[number] + frame]

    def _require_version(self, installed: Mapping[str, str | None]) -> None:
        about = self._about
        if about.format != FORMAT:
            raise fault(
                self.folder / ABOUT_FILE, "format", f"{FORMAT}", about.format,
                f"They are of another version of vla-rl. {REMEDY}",
            )  # fmt: skip
        if not installed.keys() <= about.packages.keys():
            raise UserError(
                f"{self.folder}: expected snapshots of the simulator {', '.join(installed)}, got those of "
                f"{', '.join(about.packages) or 'one without packages'}: take demonstrations of the suite in play"
            )
        other = [
            f"{name} {about.packages.get(name)}, here is {version}"
            for name, version in installed.items()
            if about.packages.get(name) != version
        ]
        if other:
            raise UserError(
                f"{self.folder}: the snapshots are of {'; '.join(other)}. A simulator of another version would go on "
                f"otherwise. {REMEDY}"
            )

    def _read_task(self, task: TaskStates) -> None:
        table = open_table(self.folder, task.file, source=self.folder / ABOUT_FILE, key="tasks")
        if "turns" not in task.parts:
            raise self._wrong(table, "turns", "a part of every state", "a file without it")
        episodes, frames = integers(table, EPISODE), integers(table, FRAME)
        self._place(table, task.task, episodes, frames)
        columns = {name: _read_part(table, name, part) for name, part in task.parts.items()}
        self._columns.append(columns)
        self._check_states(table, task.task, columns, episodes, frames)
        for part in (episodes, frames, *(column.places for column in columns.values())):
            self._digest.update(np.ascontiguousarray(part).tobytes())
        for name, column in columns.items():
            self._digest.update(f"{task.task} {name} {column.part}".encode())
            values = column.values
            whole = isinstance(values, np.ndarray)
            self._digest.update(values.tobytes() if whole else "\0".join(values).encode())

    def _place(
        self, table: Table, task: str, episodes: Int64[np.ndarray, " R"], frames: Int64[np.ndarray, " R"]
    ) -> None:  # fmt: skip
        """Where each demonstration of the file begins; every one has all of its states, in their order."""
        row = 0
        while row < len(episodes):
            number = int(episodes[row])
            known = number < len(self._lengths) and number not in self.demonstrations
            length = self._lengths[number] if known else 0
            expected = np.arange(1, length)
            there = slice(row, row + length - 1)
            if (
                not length > 1
                or not np.array_equal(frames[there], expected)
                or (episodes[there] != number).any()
            ):
                found = f"episode {number}, frame {int(frames[row])} in row {row}"
                wanted = "all states of each episode of the dataset, once"
                raise self._wrong(table, EPISODE, wanted, found)
            first = self._firsts[number]
            states = np.unique(self._initial_states[first : first + length])
            if len(states) != 1:
                raise self._wrong(
                    table,
                    "initial_state",
                    "one for an episode",
                    f"{states[:3]} in episode {number}",
                )
            self._rows[number] = (len(self._columns), row)
            self.demonstrations[number] = Demonstration(number, task, int(states[0]), length)
            row += length - 1

    def _check_states(
        self, table: Table, task: str, columns: Mapping[str, _Column],
        episodes: Int64[np.ndarray, " R"], frames: Int64[np.ndarray, " R"],
    ) -> None:  # fmt: skip
        """Every state is what the dataset says of its frame."""
        of = [self.demonstrations[int(number)].initial_state for number in episodes]
        wanted = {
            "task": np.array([task] * len(episodes)),
            "initial_state": np.array(of),
            "turns": frames,
            "ended": np.zeros(len(episodes), bool),
        }
        for name, expected in wanted.items():
            if name not in columns:
                continue
            column = columns[name]
            if column.part.kind != _KNOWN[name]:
                raise self._wrong(table, name, f"a {_KNOWN[name]}", column.part.kind)
            if len(column.values) != len(expected):
                raise self._wrong(table, name, "a value in every row", "null")
            bad = np.flatnonzero(np.asarray(column.values) != expected)
            if len(bad):
                row = int(bad[0])
                raise self._wrong(
                    table, name, f"{expected[row]}, as the dataset has it", f"{column.values[row]} in row {row}"
                )  # fmt: skip

    def _wrong(self, table: Table, key: str, expected: str, found: str) -> UserError:
        return fault(table.path, key, expected, Phrase(found), REMEDY)


_KNOWN = {"task": "text", "initial_state": "whole", "turns": "whole", "ended": "flag"}
"""Parts whose meaning is known; every simulator has the turns, and ours have all of them."""


def _read_part(table: Table, name: str, part: Part) -> _Column:
    stored = table.read(name)
    there: Bool[np.ndarray, " R"] = ~np.asarray(stored.is_null().to_numpy(), bool)
    places = np.where(there, np.cumsum(there) - 1, -1)
    stored, key = stored.drop_null(), f"column {name!r}"
    if part.kind == "text":
        return _Column(part, texts(stored, source=table.path, key=key), places)
    dtype = part.dtype if part.kind == "array" else _SCALARS[part.kind][1]
    if dtype not in ARROW_TYPES or any(size < 0 for size in part.shape):
        raise fault(table.path, key, f"one of {', '.join(ARROW_TYPES)}", dtype, REMEDY)
    shape = part.shape if part.kind == "array" else ()
    size = int(np.prod(shape, dtype=np.int64))
    values = numbers(stored, (size,), dtype, source=table.path, key=key)
    checked = check_array(
        values, source=table.path, key=key, kinds="fiub", largest=LARGEST, axes=("row",),
        remedy=REMEDY,
    )  # fmt: skip
    return _Column(part, checked.reshape(len(values), *shape), places)


def _plain(value: Any, kind: str) -> Any:
    return value if kind == "text" else value.item()
