"""Write a LeRobotDataset v3.0, episode by episode, and make it appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_rl.config.errors import UserError
from vla_rl.data.lerobot.pictures import VideoWriter, encode_png
from vla_rl.data.lerobot.schema import (
    DATA_PATH,
    EPISODES_PATH,
    FILES_PER_CHUNK,
    INDEX_FEATURES,
    INFO_PATH,
    STATS_PATH,
    TASKS_PATH,
    VIDEO_PATH,
    DatasetInfo,
    Feature,
    check_features,
    data_schema,
    episodes_schema,
    tasks_table,
)
from vla_rl.data.lerobot.statistics import (
    Statistics,
    column_statistics,
    pixel_histogram,
    pixel_statistics,
    to_json,
)
from vla_rl.runtime.files import (
    begin_folder,
    cannot_write,
    sync_folder,
    sync_tree,
    write_json,
)

PARQUET: dict[str, Any] = {"compression": "snappy", "write_page_checksum": True}
"""With checksums a reader notices a damaged byte that would otherwise be another number."""


@dataclass
class _VideoFile:
    """The mp4 that a camera is being written to."""

    writer: VideoWriter
    number: int  # of the file, counted over all chunks


class LeRobotWriter:
    """Writes a new dataset; use it as a context manager.

        with LeRobotWriter(folder, fps=16, features={...}) as writer:
            writer.add_episode({"action": ..., ...}, task="open the drawer")

    Everything goes to a hidden folder beside `folder`, which takes its name when the context is left in
    good order; after an error nothing is left. Files are closed and the next one begun at the given sizes.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        fps: int,
        features: Mapping[str, Feature],
        robot_type: str | None = None,
        data_file_mb: int = 100,
        video_file_mb: int = 200,
    ) -> None:
        """Begin a dataset. Raises UserError if `folder` exists or cannot be made, ConfigError for bad features."""
        check_features(features)
        self.folder = Path(folder)
        if self.folder.exists():
            raise UserError(
                f"{self.folder} exists already: a dataset is never overwritten. Choose another folder or remove it."
            )
        self._features, self._fps = {**features, **INDEX_FEATURES}, fps
        self._info = DatasetInfo(
            fps, self._features, 0, 0, 0, robot_type,
            data_files_size_in_mb=data_file_mb, video_files_size_in_mb=video_file_mb,
        )  # fmt: skip
        self._partial = begin_folder(self.folder)
        self._schema = data_schema(self._features)
        self._data: pq.ParquetWriter | None = None
        self._data_number = 0
        self._data_bytes = 0
        self._videos: dict[str, _VideoFile] = {}
        self._tasks: list[str] = []
        self._episode_rows: list[dict[str, Any]] = []
        self._columns: dict[str, list[np.ndarray]] = {
            name: [] for name, f in self._features.items() if not f.visual
        }
        self._histograms: dict[str, np.ndarray] = {}
        self._frames = 0

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for file in self._videos.values():
                file.writer.abandon()
            shutil.rmtree(self._partial, ignore_errors=True)

    def add_episode(self, frames: Mapping[str, np.ndarray], task: str) -> None:
        """Append one episode.

        `frames` holds an array for every feature given to the writer: (L,) or (L, size) numbers, (L, H, W, 3)
        uint8 pictures. Raises UserError for a missing or unknown name, a wrong shape or a number that is not finite.
        """
        length = self._check(frames)
        if task not in self._tasks:
            self._tasks.append(task)
        episode = len(self._episode_rows)
        step = np.arange(length)
        columns = {
            **frames,
            "timestamp": (step / self._info.fps).astype(np.float32),
            "frame_index": step,
            "episode_index": np.full(length, episode),
            "index": self._frames + step,
            "task_index": np.full(length, self._tasks.index(task)),
        }
        row: dict[str, Any] = {"episode_index": episode, "tasks": [task], "length": length}
        row |= self._write_data(columns)
        row |= {"dataset_from_index": self._frames, "dataset_to_index": self._frames + length}
        for name, feature in self._features.items():
            if feature.dtype == "video":
                row |= self._write_video(name, columns[name])
        for name, statistics in self._statistics(columns, length).items():
            row |= {f"stats/{name}/{key}": value.tolist() for key, value in statistics.items()}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        self._episode_rows.append(row)
        self._frames += length

    def add_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Add a JSON file of its own at the path `name` in the dataset, which appears together with the rest."""
        path = self._partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, data)

    def add_table(self, name: str, table: pa.Table) -> None:
        """Add a parquet file of its own at the path `name` in the dataset, which appears together with the rest."""
        path = self._partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **PARQUET)

    def _check(self, frames: Mapping[str, np.ndarray]) -> int:
        """Check an episode against the features and return its length."""
        given = {name: f for name, f in self._features.items() if name not in INDEX_FEATURES}
        if set(frames) != set(given):
            raise UserError(f"an episode needs the features {sorted(given)}, got {sorted(frames)}")
        lengths = {len(values) for values in frames.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise UserError(
                f"an episode needs equally many frames of every feature, at least one; got {sorted(lengths)}"
            )
        length = lengths.pop()
        for name, feature in given.items():
            values = frames[name]
            shapes = {(length, *feature.shape)} | ({(length,)} if feature.shape == (1,) else set())
            if values.shape not in shapes:
                raise UserError(
                    f"feature {name!r}: expected shape {(length, *feature.shape)}, got {values.shape}"
                )
            if feature.visual and values.dtype != np.uint8:
                raise UserError(f"feature {name!r}: expected uint8 pictures, got {values.dtype}")
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise UserError(f"feature {name!r} holds a number that is not finite")
        return length

    def _write_data(self, columns: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Write the rows of one episode as one row group; return where."""
        if self._data is not None and self._data_bytes >= self._info.data_files_size_in_mb * 2**20:
            self._data.close()
            self._data, self._data_bytes = None, 0
            self._data_number += 1
        where = _numbered(self._data_number)
        if self._data is None:
            path = self._partial / DATA_PATH.format(**where)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data = pq.ParquetWriter(path, self._schema, **PARQUET)
        arrays = [
            _to_arrow(columns[name], self._features[name], self._schema.field(name).type)
            for name in self._schema.names
        ]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._data.write_table(table, row_group_size=len(table))
        self._data_bytes += table.nbytes
        return {f"data/{key}": value for key, value in where.items()}

    def _write_video(self, camera: str, pictures: np.ndarray) -> dict[str, int | float]:
        file = self._videos.get(camera)
        limit = self._info.video_files_size_in_mb * 2**20
        if file is None or file.writer.bytes >= limit:
            file = self._next_video(camera, file)
        start = file.writer.seconds
        file.writer.write(pictures)
        where: dict[str, int | float] = {**_numbered(file.number), "from_timestamp": start}
        where["to_timestamp"] = file.writer.seconds
        return {f"videos/{camera}/{key}": value for key, value in where.items()}

    def _next_video(self, camera: str, before: _VideoFile | None) -> _VideoFile:
        if before is not None:
            before.writer.close()
        number = 0 if before is None else before.number + 1
        path = self._partial / VIDEO_PATH.format(video_key=camera, **_numbered(number))
        height, width, _ = self._features[camera].shape
        self._videos[camera] = _VideoFile(VideoWriter(path, height, width, self._fps), number)
        return self._videos[camera]

    def _statistics(self, columns: Mapping[str, np.ndarray], length: int) -> dict[str, Statistics]:
        """Statistics of one episode; what the dataset's need is kept."""
        result: dict[str, Statistics] = {}
        for name, feature in self._features.items():
            if feature.visual:
                histogram = pixel_histogram(columns[name])
                self._histograms[name] = self._histograms.get(name, 0) + histogram
                result[name] = pixel_statistics(histogram, length)
            else:
                self._columns[name].append(np.asarray(columns[name]))
                result[name] = column_statistics(columns[name])
        return result

    def _finish(self) -> None:
        """Close all files, write the metadata, and let the dataset appear."""
        if not self._episode_rows or self._data is None:
            raise UserError(f"{self.folder}: no episode was added; an empty dataset is not written")
        self._data.close()
        described = dict(self._features)
        for camera, file in self._videos.items():
            described[camera] = replace(described[camera], info=file.writer.describe())
            file.writer.close()
        self._videos = {}
        info = replace(
            self._info,
            features=described,
            total_episodes=len(self._episode_rows),
            total_frames=self._frames,
            total_tasks=len(self._tasks),
            video_path=VIDEO_PATH if any(f.dtype == "video" for f in described.values()) else None,
        )
        statistics: dict[str, Statistics] = {}
        for name, feature in self._features.items():
            if feature.visual:
                statistics[name] = pixel_statistics(self._histograms[name], self._frames)
            else:
                statistics[name] = column_statistics(np.concatenate(self._columns[name]))
        episodes = pa.Table.from_pylist(self._episode_rows, schema=episodes_schema(self._features))
        path = self._partial / EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(episodes, path, **PARQUET)
        pq.write_table(tasks_table(self._tasks), self._partial / TASKS_PATH, **PARQUET)
        write_json(self._partial / INFO_PATH, info.to_json())
        write_json(self._partial / STATS_PATH, to_json(statistics))
        try:
            # fails if the folder has appeared meanwhile, unless it is empty
            sync_tree(self._partial)
            self._partial.rename(self.folder)
            sync_folder(self.folder.parent)
        except OSError as error:
            raise UserError(cannot_write(self.folder, error)) from error


def _numbered(number: int) -> dict[str, int]:
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}


def _to_arrow(values: np.ndarray, feature: Feature, arrow_type: pa.DataType) -> pa.Array:
    if feature.visual:
        # lerobot names the file the picture came from; readers look at `bytes` first
        stored = [
            {"bytes": encode_png(picture), "path": f"frame-{step:06d}.png"}
            for step, picture in enumerate(values)
        ]
        return pa.array(stored, type=arrow_type)
    flat = np.ascontiguousarray(values, dtype=feature.dtype).reshape(-1)
    if feature.shape == (1,):
        return pa.array(flat, type=arrow_type)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=arrow_type)
