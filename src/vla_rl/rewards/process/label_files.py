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
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_rl.config.errors import UserError
from vla_rl.config.reward import LabelConfig
from vla_rl.config.serialize import from_json, to_json
from vla_rl.rewards.process.labels import Labels
from vla_rl.rewards.process.robot_signals import robot_signals
from vla_rl.rewards.trajectories import Trajectory
from vla_rl.runtime.files import read_json, require_writable, whole_folder, write_json

FORMAT = 1
SUMMARY = "labels.json"
TABLE = "labels.parquet"


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


def load_labels(folder: Path) -> tuple[LabelConfig, list[Labels]]:
    """The configuration and the labels of every episode, in order. UserError if there are none, or damaged ones."""
    summary = read_json(folder / SUMMARY)
    if summary.get("format") != FORMAT:
        raise UserError(
            f"{folder / SUMMARY}: expected labels of format {FORMAT}, got {summary.get('format')}: label again"
        )
    config = from_json(LabelConfig, summary.get("labels"), "labels", source=folder / SUMMARY)
    try:
        table = pq.read_table(folder / TABLE)
        columns = {name: table[name].to_numpy() for name in table.column_names}
        episodes = columns["episode_index"]
        edges = np.flatnonzero(np.diff(episodes, prepend=-1, append=-1))
        labels = [_labels(columns, slice(a, b)) for a, b in itertools.pairwise(edges)]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{folder / TABLE} is missing or damaged ({error}): label again") from error
    if len(labels) != summary.get("episodes"):
        raise UserError(
            f"{folder / TABLE}: expected {summary.get('episodes')} episodes, got {len(labels)}: label again"
        )
    return config, labels


def _labels(columns: dict[str, np.ndarray], rows: slice) -> Labels:
    return Labels(
        positive=columns["positive"][rows].astype(bool),
        known=columns["known"][rows].astype(bool),
        progress=columns["progress"][rows].astype(np.float32),
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
