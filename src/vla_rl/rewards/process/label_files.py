"""Labels on disk, beside the dataset they belong to.

    <dataset>/labels/labels.json       format, what was labelled, the configuration, counts
    <dataset>/labels/labels.parquet    one row a turn, in the dataset's order:
        episode_index, frame_index     int64, as in the dataset's own files
        positive, known                bool; known false: neither a positive nor a negative example
        progress                       float32, 0..1
        milestone, key_frame           bool
        gripper_opening                float32, 0 closed .. 1 open, what milestones were found in
        speed                          float32, m/s of the hand, what key frames were found in

LeRobot reads the dataset as before: it does not look into the folder.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge

from vla_rl.config.errors import ConfigError, UserError
from vla_rl.config.reward import LabelConfig
from vla_rl.config.serialize import from_json, to_json
from vla_rl.data.lerobot.tables import Table, numbers, open_table
from vla_rl.rewards.process.labels import Labels
from vla_rl.rewards.process.robot_signals import robot_signals
from vla_rl.rewards.trajectories import Trajectory
from vla_rl.runtime.external import Phrase, check_array, fault, read_json
from vla_rl.runtime.files import require_writable, whole_folder, write_json

FORMAT = 1
SUMMARY = "labels.json"
TABLE = "labels.parquet"
REMEDY = "Remove the folder and label again."


def save_labels(
    folder: Path,
    trajectories: Sequence[Trajectory],
    labels: Sequence[Labels],
    config: LabelConfig,
    dataset: str,
    draw: Callable[[Path], object] | None = None,
) -> None:
    """Write them to a new folder, whole or not at all. UserError if it exists or cannot be written.

    draw: called with the unfinished folder, to put pictures into it.
    """
    require_no_labels(folder)
    with whole_folder(folder) as partial:
        pq.write_table(_table(trajectories, labels, config), partial / TABLE)
        write_json(partial / SUMMARY, _summary(trajectories, labels, config, dataset))
        if draw is not None:
            draw(partial)


def require_no_labels(folder: Path) -> None:
    """Raise UserError, before anything is labelled, where labels could not be written to `folder`."""
    if folder.exists():
        raise UserError(
            f"{folder} exists already: labels are never overwritten. Remove it, or choose another folder (--out)."
        )
    require_writable(folder, "folder")


@dataclass(frozen=True)
class _Summary:
    format: int
    labels: dict[str, str | float | int | bool | None]
    episodes: Annotated[int, Ge(0)]


def load_labels(folder: Path) -> tuple[LabelConfig, list[Labels]]:
    """The configuration and the labels of every episode, in order. UserError if there are none, or damaged ones."""
    path = folder / SUMMARY
    summary = read_json(path, _Summary, inside=folder, remedy=REMEDY)
    if summary.format != FORMAT:
        raise fault(path, "format", str(FORMAT), summary.format, REMEDY)
    try:
        config = from_json(LabelConfig, summary.labels, "labels")
    except ConfigError as error:
        raise UserError(f"{path}: {error}. {REMEDY}") from error
    table = open_table(folder, TABLE, source=path)
    edges = _episode_edges(table, summary.episodes)
    columns = {name: _column(table, name, dtype) for name, dtype in COLUMNS.items()}
    unlearned = columns["positive"] & ~columns["known"]
    if unlearned.any():
        found = Phrase(f"a positive turn that is not known in row {int(unlearned.argmax())}")
        raise fault(table.path, "positive", "positive turns among the known ones", found, REMEDY)
    outside = (columns["progress"] < 0) | (columns["progress"] > 1)
    if outside.any():
        found = Phrase(f"{columns['progress'][outside][0]:g} in row {int(outside.argmax())}")
        raise fault(table.path, "progress", "numbers between 0 and 1", found, REMEDY)
    return config, [_labels(columns, slice(a, b)) for a, b in itertools.pairwise(edges)]


COLUMNS = {
    "positive": "bool", "known": "bool", "progress": "float32", "milestone": "bool", "key_frame": "bool",
}  # fmt: skip
"""What labels are made of, and the type of each; the other columns are for people."""


def _episode_edges(table: Table, count: int) -> list[int]:
    """The first row of each of `count` episodes, and the number of rows; each episode has at least one."""
    episodes = _column(table, "episode_index", "int64")
    edges = np.flatnonzero(np.diff(episodes, prepend=-1, append=-1)).tolist()
    starts = episodes[edges[:-1]] if len(episodes) else episodes
    if not np.array_equal(starts, np.arange(count)):
        expected = f"the episodes 0 to {count - 1} one after the other, as {SUMMARY} says"
        found = Phrase("others, or in another order")
        raise fault(table.path, "episode_index", expected, found, REMEDY)
    return edges if len(episodes) else [0]


def _column(table: Table, name: str, dtype: str) -> np.ndarray:
    values = numbers(table.read(name), (1,), dtype, source=table.path, key=name)
    return check_array(
        values, source=table.path, key=name, kinds="fib", axes=("row",), remedy=REMEDY
    )


def _labels(columns: dict[str, np.ndarray], rows: slice) -> Labels:
    return Labels(
        positive=columns["positive"][rows],
        known=columns["known"][rows],
        progress=columns["progress"][rows],
        milestones=np.flatnonzero(columns["milestone"][rows]).astype(np.int64),
        key_frames=np.flatnonzero(columns["key_frame"][rows]).astype(np.int64),
    )


def _table(
    trajectories: Sequence[Trajectory], labels: Sequence[Labels], config: LabelConfig
) -> pa.Table:
    parts: list[dict[str, np.ndarray]] = []
    for index, (trajectory, given) in enumerate(zip(trajectories, labels, strict=True)):
        steps = np.arange(len(trajectory))
        robot = robot_signals(trajectory.robot)
        opening = robot.gripper_opening(trajectory, config.gripper)
        parts.append(
            {
                "episode_index": np.full(len(steps), index, dtype=np.int64),
                "frame_index": steps.astype(np.int64),
                "positive": given.positive,
                "known": given.known,
                "progress": given.progress,
                "milestone": np.isin(steps, given.milestones),
                "key_frame": np.isin(steps, given.key_frames),
                "gripper_opening": opening.astype(np.float32),
                "speed": robot.speed(trajectory).astype(np.float32),
            }
        )
    return pa.table({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _summary(
    trajectories: Sequence[Trajectory], labels: Sequence[Labels], config: LabelConfig, dataset: str
) -> dict[str, object]:
    return {
        "format": FORMAT,
        "dataset": dataset,
        "robot": trajectories[0].robot,
        "turn_seconds": trajectories[0].turn_seconds,
        "labels": to_json(config),
        "episodes": len(trajectories),
        "successes": sum(trajectory.success for trajectory in trajectories),
        "turns": sum(map(len, trajectories)),
        "positive": sum(int(given.positive.sum()) for given in labels),
        "negative": sum(int(given.negative.sum()) for given in labels),
    }
