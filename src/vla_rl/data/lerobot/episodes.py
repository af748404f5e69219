"""meta/episodes and meta/tasks.parquet from outside: where each episode's frames lie, and what the tasks are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from vla_rl.config.errors import UserError
from vla_rl.data.lerobot.schema import TASKS_PATH, DatasetInfo
from vla_rl.data.lerobot.tables import (
    REMEDY,
    Table,
    integers,
    numbers,
    open_table,
    text_lists,
    texts,
)
from vla_rl.runtime.external import Phrase, check_array, fault, files_inside

MOST_FILES = 1_000_000
"""Largest number of a chunk or of a file within its chunk."""
LONGEST_VIDEO = 1e7
"""Seconds: four months."""


@dataclass(frozen=True)
class EpisodeEntry:
    """One row of meta/episodes: where an episode's frames lie."""

    index: int
    length: int
    tasks: tuple[str, ...]
    first_frame: int  # its frames are first_frame .. first_frame + length - 1 of the dataset
    data_file: tuple[int, int]  # chunk, file
    video_files: dict[str, tuple[int, int]]
    video_start: dict[str, float]  # s


@dataclass(frozen=True)
class Tasks:
    """Instructions by their numbers, in ascending order. Numbers may have gaps: tasks are taken out of datasets."""

    path: Path
    numbers: Int64[np.ndarray, " T"]
    texts: tuple[str, ...]

    def positions(self, found: Int64[np.ndarray, " F"]) -> Int64[np.ndarray, " F"]:
        """Index into `texts` for every task number; -1 for one that the file does not have."""
        at = np.searchsorted(self.numbers, found).clip(max=len(self.numbers) - 1)
        return np.where(self.numbers[at] == found, at, -1)


def read_episodes(folder: Path, info: DatasetInfo) -> tuple[EpisodeEntry, ...]:
    """The rows of all files in meta/episodes. Raises UserError naming file, row and column of the first fault."""
    paths = files_inside(folder, "meta/episodes/*/*.parquet")
    if not paths:
        raise UserError(
            f"{folder}: expected meta/episodes/chunk-000/file-000.parquet, got none. {REMEDY}"
        )
    videos = [name for name, feature in info.features.items() if feature.dtype == "video"]
    entries: list[EpisodeEntry] = []
    for path in paths:
        table = open_table(folder, path.relative_to(folder).as_posix(), source=folder)
        if len(entries) + table.rows > info.total_episodes:
            expected = f"{info.total_episodes} episodes in all, as meta/info.json says"
            found = Phrase(f"{len(entries) + table.rows} up to this file")
            raise fault(path, "", expected, found, REMEDY)
        entries += _entries(table, videos, entries)
    frames = sum(entry.length for entry in entries)
    if len(entries) != info.total_episodes or frames != info.total_frames:
        raise UserError(
            f"{folder} is damaged: expected {info.total_episodes} episodes with {info.total_frames} frames, got "
            f"{len(entries)} with {frames}. {REMEDY}"
        )
    return tuple(entries)


def _entries(
    table: Table, videos: Sequence[str], before: Sequence[EpisodeEntry]
) -> list[EpisodeEntry]:
    index = integers(table, "episode_index")
    _equal(table, "episode_index", index, len(before) + np.arange(len(index)))
    lengths = integers(table, "length", least=1)
    start = before[-1].first_frame + before[-1].length if before else 0
    ends = start + np.cumsum(lengths)
    first = integers(table, "dataset_from_index")
    _equal(table, "dataset_from_index", first, ends - lengths)
    if "dataset_to_index" in table.names:
        _equal(table, "dataset_to_index", integers(table, "dataset_to_index"), ends)
    data = _files(table, "data")
    video_files = {name: _files(table, f"videos/{name}") for name in videos}
    starts = {name: _seconds(table, f"videos/{name}/from_timestamp") for name in videos}
    tasks = text_lists(table.read("tasks"), source=table.path, key="column 'tasks'")
    return [
        EpisodeEntry(
            index=int(index[row]),
            length=int(lengths[row]),
            tasks=tasks[row],
            first_frame=int(first[row]),
            data_file=data[row],
            video_files={name: video_files[name][row] for name in videos},
            video_start={name: float(starts[name][row]) for name in videos},
        )
        for row in range(len(index))
    ]


def _files(table: Table, prefix: str) -> list[tuple[int, int]]:
    chunks = integers(table, f"{prefix}/chunk_index", most=MOST_FILES).tolist()
    return list(
        zip(chunks, integers(table, f"{prefix}/file_index", most=MOST_FILES).tolist(), strict=True)
    )


def _seconds(table: Table, name: str) -> np.ndarray:
    key = f"column {name!r}"
    values = numbers(table.read(name), (1,), "float64", source=table.path, key=key)
    check_array(values, source=table.path, key=key, axes=("row",), largest=LONGEST_VIDEO)
    return values


def _equal(table: Table, name: str, found: np.ndarray, expected: np.ndarray) -> None:
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        row = int(wrong[0])
        said = Phrase(f"{found[row]} in row {row}")
        raise fault(table.path, f"column {name!r}", f"{expected[row]}", said, REMEDY)


def read_tasks(folder: Path) -> Tasks:
    """meta/tasks.parquet. Raises UserError for a number that is null, negative or there twice, and for null texts."""
    table = open_table(folder, TASKS_PATH, source=folder)
    # an unnamed pandas index is stored under a name of its own
    column = "task" if "task" in table.names else "__index_level_0__"
    if column not in table.names or "task_index" not in table.names:
        found = Phrase(f"the columns {', '.join(table.names[:12])}")
        raise fault(table.path, "", "the columns task_index and task", found, REMEDY)
    if not table.rows:
        raise fault(table.path, "", "at least one task", Phrase("none"), REMEDY)
    index = integers(table, "task_index")
    names = texts(table.read(column), source=table.path, key="column 'task'")
    order = np.argsort(index, kind="stable")
    twice = np.flatnonzero(np.diff(index[order]) == 0)
    if len(twice):
        found = Phrase(f"{index[order[twice[0]]]} twice")
        expected = "a number of its own for every task"
        raise fault(table.path, "column 'task_index'", expected, found, REMEDY)
    return Tasks(table.path, index[order], tuple(names[i] for i in order))
