"""What a LeRobotDataset v3.0 consists of: features, meta/info.json and the parquet schemas.

    meta/info.json                                 version, fps, features, totals, path patterns
    meta/stats.json                                statistics of every feature over the dataset
    meta/tasks.parquet                             task text -> task index
    meta/episodes/chunk-000/file-000.parquet       one row an episode: where its frames lie, its statistics
    data/chunk-000/file-000.parquet                one row a frame: everything but videos
    videos/<camera>/chunk-000/file-000.mp4         many episodes one after the other

Source: the `lerobot` package 0.6.1, src/lerobot/datasets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from vla_rl.config.errors import require

CODEBASE_VERSION = "v3.0"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILES_PER_CHUNK = 1000

STATISTICS = ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")
ARROW_TYPES: dict[str, pa.DataType] = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "uint8": pa.uint8(),
    "bool": pa.bool_(),
}


@dataclass(frozen=True)
class Feature:
    """One entry of `features`: what is stored for every frame under one name."""

    dtype: str
    """A numpy type name, or "image" (PNG in the parquet file) or "video" (mp4)."""
    shape: tuple[int, ...]
    """Of one frame; (H, W, 3) for pictures; (1,) for what is a scalar in the columns."""
    names: tuple[str, ...] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def visual(self) -> bool:
        return self.dtype in ("image", "video")

    @property
    def rgb(self) -> bool:
        """A camera with three channels, and no depth map stored as one."""
        depth = self.info.get("is_depth_map") or self.info.get("video.is_depth_map")
        return self.visual and len(self.shape) == 3 and self.shape[2] == 3 and not depth

    @property
    def numeric(self) -> bool:
        return not self.visual and self.dtype not in ("string", "language")

    def to_json(self) -> dict[str, Any]:
        names = None if self.names is None else list(self.names)
        entry = {"dtype": self.dtype, "shape": list(self.shape), "names": names}
        return {**entry, "info": dict(self.info)} if self.info else entry


def vector(size: int, names: tuple[str, ...] | None = None, dtype: str = "float32") -> Feature:
    """A feature of `size` numbers a frame; size 1 is a scalar column."""
    return Feature(dtype, (size,), names)


def camera(height: int, width: int, *, video: bool) -> Feature:
    """A feature of one RGB picture a frame."""
    return Feature(
        "video" if video else "image", (height, width, 3), ("height", "width", "channel")
    )


INDEX_FEATURES = {
    "timestamp": vector(1),
    "frame_index": vector(1, dtype="int64"),
    "episode_index": vector(1, dtype="int64"),
    "index": vector(1, dtype="int64"),
    "task_index": vector(1, dtype="int64"),
}
"""Columns of every dataset; the writer fills them itself."""


def check_features(features: Mapping[str, Feature]) -> None:
    """Raise ConfigError for a feature that the format cannot hold."""
    require(bool(features), "a dataset needs at least one feature")
    for name, feature in features.items():
        require("/" not in name, f"feature names may not contain '/', got {name!r}")
        require(name not in INDEX_FEATURES, f"feature {name!r} is written by the writer itself")
        if feature.visual:
            require(
                len(feature.shape) == 3 and feature.shape[2] == 3,
                f"feature {name!r}: expected shape (height, width, 3), got {feature.shape}",
            )
        else:
            require(
                feature.dtype in ARROW_TYPES and len(feature.shape) == 1,
                f"feature {name!r}: expected a vector of {', '.join(ARROW_TYPES)}, "
                f"got {feature.dtype} of shape {feature.shape}",
            )


@dataclass(frozen=True)
class DatasetInfo:
    """meta/info.json."""

    fps: float
    """Frames a second; a whole number but for cameras of 29.97."""
    features: dict[str, Feature]
    total_episodes: int
    total_frames: int
    total_tasks: int
    robot_type: str | None = None
    data_path: str = DATA_PATH
    video_path: str | None = VIDEO_PATH
    chunks_size: int = FILES_PER_CHUNK
    data_files_size_in_mb: int = 100
    video_files_size_in_mb: int = 200

    def to_json(self) -> dict[str, Any]:
        return {
            "codebase_version": CODEBASE_VERSION,
            "fps": self.fps,
            "features": {name: feature.to_json() for name, feature in self.features.items()},
            "total_episodes": self.total_episodes,
            "total_frames": self.total_frames,
            "total_tasks": self.total_tasks,
            "chunks_size": self.chunks_size,
            "data_files_size_in_mb": self.data_files_size_in_mb,
            "video_files_size_in_mb": self.video_files_size_in_mb,
            "data_path": self.data_path,
            "video_path": self.video_path,
            "robot_type": self.robot_type,
            "splits": {"train": f"0:{self.total_episodes}"},
        }


def data_schema(features: Mapping[str, Feature]) -> pa.Schema:
    """Schema of data/*.parquet: every feature but videos, with the metadata Hugging Face `datasets` reads."""
    fields: list[pa.Field] = []
    described: dict[str, Any] = {}
    for name, feature in features.items():
        if feature.dtype == "video":
            continue
        if feature.dtype == "image":
            fields.append(pa.field(name, pa.struct({"bytes": pa.binary(), "path": pa.string()})))
            described[name] = {"_type": "Image"}
            continue
        value = {"dtype": feature.dtype, "_type": "Value"}
        arrow_type = ARROW_TYPES[feature.dtype]
        if feature.shape == (1,):
            fields.append(pa.field(name, arrow_type))
            described[name] = value
        else:
            size = feature.shape[0]
            # `datasets` calls the child field "element"; the name is part of the arrow type
            fields.append(pa.field(name, pa.list_(pa.field("element", arrow_type), size)))
            described[name] = {"feature": value, "length": size, "_type": "List"}
    return pa.schema(
        fields, metadata={"huggingface": json.dumps({"info": {"features": described}})}
    )


def tasks_table(tasks: list[str]) -> pa.Table:
    """meta/tasks.parquet, a pandas frame indexed by the task text.

    Without the pandas metadata lerobot loads the file without complaint, takes 0, 1, ... for the index and
    then returns the integer as the task's text.
    """
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64",
         "numpy_type": "int64", "metadata": None},
        {"name": "task", "field_name": "task", "pandas_type": "unicode",
         "numpy_type": "object", "metadata": None},
    ]  # fmt: skip
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [
            {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
             "metadata": {"encoding": "UTF-8"}}
        ],
        "columns": columns,
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.3.3",
    }  # fmt: skip
    schema = pa.schema(
        [("task_index", pa.int64()), ("task", pa.string())], {"pandas": json.dumps(pandas)}
    )
    return pa.table({"task_index": list(range(len(tasks))), "task": tasks}, schema=schema)


def episodes_schema(features: Mapping[str, Feature]) -> pa.Schema:
    """Schema of meta/episodes/*.parquet for a dataset with these features (index features included)."""
    integer, real = pa.int64(), pa.float64()
    fields = [
        ("episode_index", integer),
        ("tasks", pa.list_(pa.field("element", pa.string()))),
        ("length", integer),
        ("data/chunk_index", integer),
        ("data/file_index", integer),
        ("dataset_from_index", integer),
        ("dataset_to_index", integer),
    ]
    for name, feature in features.items():
        if feature.dtype == "video":
            prefix = f"videos/{name}"
            fields += [(f"{prefix}/chunk_index", integer), (f"{prefix}/file_index", integer)]
            fields += [(f"{prefix}/from_timestamp", real), (f"{prefix}/to_timestamp", real)]
    for name, feature in features.items():
        for statistic in STATISTICS:
            counts = statistic == "count"
            depth = 3 if feature.visual and not counts else 1
            arrow_type: pa.DataType = integer if counts else real
            for _ in range(depth):
                arrow_type = pa.list_(pa.field("element", arrow_type))
            fields.append((f"stats/{name}/{statistic}", arrow_type))
    fields += [("meta/episodes/chunk_index", integer), ("meta/episodes/file_index", integer)]
    return pa.schema(fields)
