"""The smallest LeRobot dataset that has every file, and ways to change what its files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_rl.config import UserError
from vla_rl.data.demonstrations import load_demonstrations
from vla_rl.data.lerobot import LeRobotWriter, camera, vector

INFO, STATS = "meta/info.json", "meta/stats.json"
TASKS, EPISODES = "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"
PNG_CAMERA, VIDEO_CAMERA = "observation.images.image", "observation.images.top"
LENGTH, FPS = 4, 10


def write_small_dataset(
    folder: Path, *, action_size: int = 3, png: tuple[int, int] = (16, 16), robot: str = "arm"
) -> Path:
    """Two tasks, three episodes of four frames, one camera of each kind."""
    rng = np.random.default_rng(0)
    features = {PNG_CAMERA: camera(*png, video=False), VIDEO_CAMERA: camera(64, 64, video=True)}
    features |= {"observation.state": vector(2), "action": vector(action_size)}
    with LeRobotWriter(
        folder, fps=FPS, features={**features, "next.reward": vector(1)}, robot_type=robot
    ) as writer:
        for task in ("open", "close", "open"):
            # one colour a frame, so that a lossy video tells them apart
            shade = rng.integers(0, 256, (LENGTH, 1, 1, 3), dtype=np.uint8)
            frames = {
                PNG_CAMERA: rng.integers(0, 256, (LENGTH, *png, 3), dtype=np.uint8),
                VIDEO_CAMERA: np.broadcast_to(shade, (LENGTH, 64, 64, 3)),
                "observation.state": rng.normal(size=(LENGTH, 2)),
                "action": rng.uniform(-1, 1, (LENGTH, action_size)),
                "next.reward": np.zeros(LENGTH),
            }
            writer.add_episode(frames, task=task)
    return folder


def edit_info(folder: Path, key: str, value: Any) -> None:
    """Set the value at a path such as `features/action/shape` of meta/info.json."""
    document = json.loads((folder / INFO).read_text())
    *path, last = key.split("/")
    parent = document
    for step in path:
        parent = parent[step]
    parent[last] = value
    (folder / INFO).write_text(json.dumps(document))


def edit_column(
    path: Path, name: str, change: Callable[[list[Any]], list[Any]], kind: pa.DataType | None = None
) -> None:
    """Replace a column of a parquet file by what `change` makes of its values, of the same type unless one is given."""
    table = pq.read_table(path)
    values = pa.array(change(table[name].to_pylist()), kind or table[name].type)
    pq.write_table(table.set_column(table.column_names.index(name), name, values), path)


def at(row: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    """A change of one row."""
    return lambda values: [*values[:row], value, *values[row + 1 :]]


def refused(folder: Path, message: str, camera: str = PNG_CAMERA) -> None:
    """Loading `folder` is refused with a message that names the place in it."""
    with pytest.raises(UserError, match=message) as raised:
        load_demonstrations(folder, camera=camera)
    assert str(folder) in str(raised.value)
