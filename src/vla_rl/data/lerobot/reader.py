"""Read a LeRobotDataset v3.0: by column, by episode, by frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from vla_rl.config.errors import UserError, nearest
from vla_rl.data.lerobot.pictures import decode_image, decode_video
from vla_rl.data.lerobot.schema import STATS_PATH, TASKS_PATH, Feature, read_info


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


class LeRobotReader:
    """A LeRobotDataset v3.0 on disk.

    Opening reads the metadata alone. Columns are read on first use and kept; pictures are decoded when
    asked for and never kept, so that a dataset of any size can be open.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open `folder`. Raises UserError if it is no such dataset, is empty or is damaged."""
        self.folder = Path(folder)
        self.info = read_info(self.folder)
        self.episodes = self._read_episodes()
        self.tasks = self._read_tasks()
        self._columns: dict[str, np.ndarray] = {}
        self._files: dict[tuple[int, int], pq.ParquetFile] = {}
        self._file_start = self._index_files()

    def __len__(self) -> int:
        """Number of frames."""
        return self.info.total_frames

    @property
    def fps(self) -> int:
        return self.info.fps

    @property
    def features(self) -> dict[str, Feature]:
        return self.info.features

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the features that are pictures."""
        return tuple(name for name, feature in self.features.items() if feature.visual)

    @property
    def stats(self) -> dict[str, dict[str, np.ndarray]]:
        """meta/stats.json as arrays; empty where the file is missing."""
        path = self.folder / STATS_PATH
        if not path.is_file():
            return {}
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not readable as JSON ({error})") from error
        return {name: {k: np.asarray(v) for k, v in entry.items()} for name, entry in raw.items()}

    def feature(self, name: str) -> Feature:
        """The feature called `name`. Raises UserError with the nearest name if there is none."""
        if name not in self.features:
            raise UserError(f"{self.folder} has no feature {name!r}.{nearest(name, self.features)}")
        return self.features[name]

    def require_size(self, name: str, size: int) -> None:
        """Raise UserError unless feature `name` is a vector of `size` numbers."""
        shape = self.feature(name).shape
        if shape != (size,):
            raise UserError(
                f"{self.folder}: expected feature {name!r} of size {size}, got shape {shape}. "
                "The dataset was recorded for another robot or another action space."
            )

    def column(self, name: str) -> np.ndarray:
        """All frames of a feature that is no picture: shape (F,) for scalars, else (F, *shape)."""
        feature = self.feature(name)
        if feature.visual:
            raise UserError(f"{name!r} is a camera: read its pictures by episode")
        if name not in self._columns:
            parts = [self._read_rows(file, name) for file in self._file_start]
            values = np.concatenate([_to_numpy(part, feature) for part in parts])
            if name in ("index", "episode_index"):
                self._check_rows(name, values)
            self._columns[name] = values
        return self._columns[name]

    def pictures(
        self, camera: str, episode: int, frames: Sequence[int] | None = None
    ) -> UInt8[np.ndarray, "L H W 3"]:
        """RGB pictures of an episode, all of them or the given frames (counted within the episode, ascending)."""
        entry, feature = self._episode(episode), self.feature(camera)
        rows = np.arange(entry.length) if frames is None else np.asarray(frames, dtype=np.int64)
        if feature.dtype == "video":
            seconds = entry.video_start[camera] + rows / self.fps
            result = decode_video(
                self._video_path(camera, entry), seconds, tolerance=0.5 / self.fps
            )
        else:
            first = entry.first_frame - self._file_start[entry.data_file]
            start, stop = first + int(rows[0]), first + int(rows[-1]) + 1
            stored = self._read_rows(entry.data_file, camera, start, stop)
            chosen = stored.take(pa.array(rows - rows[0]))
            result = np.stack([self._decode_stored(item, camera) for item in chosen.to_pylist()])
        if result.shape[1:] != feature.shape:
            raise UserError(
                f"{self.folder}: expected pictures of shape {feature.shape} for {camera!r}, got {result.shape[1:]}"
            )
        return result

    def episode(self, index: int, *, pictures: bool = True) -> dict[str, Any]:
        """Every feature of one episode, shapes (L, ...), and its `task` text. Pictures are uint8 (L, H, W, 3)."""
        entry = self._episode(index)
        rows = slice(entry.first_frame, entry.first_frame + entry.length)
        result: dict[str, Any] = {
            name: self.column(name)[rows] for name, f in self.features.items() if not f.visual
        }
        if pictures:
            result |= {name: self.pictures(name, index) for name in self.cameras}
        return result | {"task": self.tasks[int(result["task_index"][0])]}

    def frame(self, index: int) -> dict[str, Any]:
        """Every feature of one frame of the dataset, and its `task` text."""
        if not 0 <= index < len(self):
            raise UserError(f"{self.folder}: expected a frame in 0..{len(self) - 1}, got {index}")
        starts = [entry.first_frame for entry in self.episodes]
        entry = self.episodes[int(np.searchsorted(starts, index, side="right")) - 1]
        result: dict[str, Any] = {
            name: self.column(name)[index] for name, f in self.features.items() if not f.visual
        }
        for name in self.cameras:
            result[name] = self.pictures(name, entry.index, [index - entry.first_frame])[0]
        return result | {"task": self.tasks[int(result["task_index"])]}

    def _episode(self, index: int) -> EpisodeEntry:
        if not 0 <= index < len(self.episodes):
            raise UserError(
                f"{self.folder}: expected an episode in 0..{len(self.episodes) - 1}, got {index}"
            )
        return self.episodes[index]

    def _read_episodes(self) -> tuple[EpisodeEntry, ...]:
        paths = sorted((self.folder / "meta" / "episodes").glob("*/*.parquet"))
        if not paths:
            raise UserError(
                f"{self.folder}: expected meta/episodes/chunk-000/file-000.parquet, got none"
            )
        rows: list[dict[str, Any]] = []
        for path in paths:
            names = [n for n in _open(path).schema_arrow.names if not n.startswith("stats/")]
            rows += _read(path, names).to_pylist()
        videos = [name for name, feature in self.info.features.items() if feature.dtype == "video"]
        try:
            entries = tuple(_episode_entry(row, videos) for row in rows)
        except KeyError as error:
            raise UserError(f"{paths[0]}: column {error} is missing") from error
        frames = sum(entry.length for entry in entries)
        if len(entries) != self.info.total_episodes or frames != self.info.total_frames:
            raise UserError(
                f"{self.folder} is damaged: expected {self.info.total_episodes} episodes with "
                f"{self.info.total_frames} frames, got {len(entries)} with {frames}"
            )
        return entries

    def _read_tasks(self) -> tuple[str, ...]:
        path = self.folder / TASKS_PATH
        table = _read(path)
        # an unnamed pandas index is stored under a name of its own
        text = "task" if "task" in table.column_names else "__index_level_0__"
        if text not in table.column_names or "task_index" not in table.column_names:
            raise UserError(
                f"{path}: expected the columns task_index and task, got {table.column_names}"
            )
        pairs = zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True)
        return tuple(task for _, task in sorted(pairs))

    def _index_files(self) -> dict[tuple[int, int], int]:
        """The data files in order, each with the number of frames before it."""
        starts: dict[tuple[int, int], int] = {}
        count = 0
        for file in sorted({entry.data_file for entry in self.episodes}):
            starts[file] = count
            count += self._file(file).metadata.num_rows
        if count != self.info.total_frames:
            raise UserError(
                f"{self.folder} is damaged: expected {self.info.total_frames} rows in data/, got {count}"
            )
        return starts

    def _file(self, file: tuple[int, int]) -> pq.ParquetFile:
        if file not in self._files:
            relative = self.info.data_path.format(chunk_index=file[0], file_index=file[1])
            self._files[file] = _open(self.folder / relative)
        return self._files[file]

    def _read_rows(
        self, file: tuple[int, int], column: str, start: int = 0, stop: int | None = None
    ) -> pa.ChunkedArray:
        """Rows start..stop of one column, reading no more row groups than needed."""
        parquet = self._file(file)
        stop = parquet.metadata.num_rows if stop is None else stop
        groups, first, before = [], 0, 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if before < stop and before + rows > start:
                first = before if not groups else first
                groups.append(group)
            before += rows
        try:
            table = parquet.read_row_groups(groups, columns=[column])
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.folder}: data file {file} is damaged ({error})") from error
        if column not in table.column_names:
            raise UserError(f"{self.folder}: {column!r} stands in meta/info.json, but not in data/")
        return table[column].slice(start - first, stop - start)

    def _decode_stored(self, stored: dict[str, Any], camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """A picture from `bytes`, or from the file that `path` names relative to the dataset."""
        if stored["bytes"] is not None:
            return decode_image(stored["bytes"])
        path = self.folder / (stored["path"] or "")
        # a dataset from elsewhere must not make us open files outside its folder
        if not path.is_file() or not path.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"{self.folder}: a picture of {camera!r} is missing: {stored['path']}")
        return decode_image(path.read_bytes())

    def _video_path(self, camera: str, entry: EpisodeEntry) -> Path:
        chunk, file = entry.video_files[camera]
        pattern = self.info.video_path or ""
        return self.folder / pattern.format(video_key=camera, chunk_index=chunk, file_index=file)

    def _check_rows(self, name: str, values: np.ndarray) -> None:
        if name == "index":
            expected = np.arange(len(values))
        else:
            lengths = [entry.length for entry in self.episodes]
            expected = np.repeat([entry.index for entry in self.episodes], lengths)
        if not np.array_equal(values, expected):
            row = int(np.flatnonzero(values != expected)[0])
            raise UserError(
                f"{self.folder} is damaged: column {name!r} of frame {row} should be {expected[row]}, got {values[row]}"
            )


def _episode_entry(row: dict[str, Any], videos: list[str]) -> EpisodeEntry:
    return EpisodeEntry(
        index=row["episode_index"],
        length=row["length"],
        tasks=tuple(row["tasks"]),
        first_frame=row["dataset_from_index"],
        data_file=(row["data/chunk_index"], row["data/file_index"]),
        video_files={
            v: (row[f"videos/{v}/chunk_index"], row[f"videos/{v}/file_index"]) for v in videos
        },
        video_start={v: row[f"videos/{v}/from_timestamp"] for v in videos},
    )


def _to_numpy(values: pa.ChunkedArray, feature: Feature) -> np.ndarray:
    if feature.dtype == "string":
        return np.array(values.to_pylist(), dtype=object)
    if feature.shape == (1,):
        return values.to_numpy().astype(feature.dtype, copy=False)
    if pa.types.is_fixed_size_list(values.type) and len(feature.shape) == 1:
        flat = values.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if len(flat) == len(values) * feature.shape[0]:
            return flat.astype(feature.dtype, copy=False).reshape(-1, *feature.shape)
    rows = np.array(values.to_pylist(), dtype=feature.dtype)
    if rows.shape[1:] != feature.shape:
        raise UserError(
            f"expected rows of shape {feature.shape} as meta/info.json says, got {rows.shape[1:]}"
        )
    return rows


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise UserError(f"expected the file {path}, which is missing") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is damaged or cut short: expected a parquet file, got {error}"
        ) from error


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    parquet = _open(path)
    try:
        return parquet.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is damaged or cut short: expected a parquet file, got {error}"
        ) from error
