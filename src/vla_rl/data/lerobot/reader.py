"""Read a LeRobotDataset v3.0: by column, by episode, by frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from vla_rl.config.errors import UserError, nearest
from vla_rl.data.lerobot.episodes import EpisodeEntry, read_episodes, read_tasks
from vla_rl.data.lerobot.info import fill, read_info
from vla_rl.data.lerobot.pictures import decode_image, decode_video
from vla_rl.data.lerobot.schema import INFO_PATH, STATS_PATH, Feature
from vla_rl.data.lerobot.statistics import Statistics, read_statistics
from vla_rl.data.lerobot.tables import REMEDY, Table, numbers, open_table, texts
from vla_rl.runtime.external import Phrase, check_array, fault, path_inside, read_bytes
from vla_rl.runtime.hub import dataset_folder
from vla_rl.runtime.memory import require_memory

LARGEST_PICTURE = 64 * 2**20
"""Bytes of a PNG or JPEG file beside the tables."""


class LeRobotReader:
    """A LeRobotDataset v3.0 on disk, which somebody else may have made: nothing in it is trusted.

    Opening reads and checks the metadata alone. Columns are read on first use and kept; pictures are decoded when
    asked for and never kept, so that a dataset of any size can be open. No file outside the folder is opened. Every
    fault is a UserError that names the file, and the row, frame or key in it.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open `folder`, or what a hub id names. Raises UserError if it is no such dataset, is empty or is damaged."""
        self.folder = dataset_folder(folder)
        self.info = read_info(self.folder)
        self.episodes = read_episodes(self.folder, self.info)
        self._tasks = read_tasks(self.folder)
        self._starts = np.array([entry.first_frame for entry in self.episodes])
        self._columns: dict[str, np.ndarray] = {}
        self._files: dict[tuple[int, int], Table] = {}
        self._file_start = self._index_files()

    def __len__(self) -> int:
        """Number of frames."""
        return self.info.total_frames

    @property
    def fps(self) -> float:
        return self.info.fps

    @property
    def features(self) -> dict[str, Feature]:
        return self.info.features

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the features that are RGB pictures; depth maps are none."""
        return tuple(name for name, feature in self.features.items() if feature.rgb)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The instructions, in the order of their numbers; `task_positions` finds a frame's."""
        return self._tasks.texts

    @property
    def stats(self) -> dict[str, Statistics]:
        """meta/stats.json as arrays, checked to be finite and in order; empty where the file is missing."""
        path = self.folder / STATS_PATH
        return read_statistics(path, self.folder) if path.is_file() else {}

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
        """All frames of a feature that is no picture: shape (F,) for scalars, else (F, *shape).

        Raises UserError for what is damaged, null, or of another type than meta/info.json says. Numbers may be
        infinite or NaN; `finite_column` refuses that.
        """
        feature = self.feature(name)
        if not feature.numeric and feature.dtype != "string":
            raise UserError(
                f"{name!r} is a {feature.dtype}, not a column of numbers: read cameras by episode"
            )
        if name not in self._columns:
            values = self._read_column(name, feature)
            if name in ("index", "episode_index", "frame_index"):
                self._check_rows(name, values)
            self._columns[name] = values
        return self._columns[name]

    def finite_column(self, name: str) -> np.ndarray:
        """`column`, with every number finite and of a size that a robot's can have.

        Raises UserError naming episode, frame and dimension of the first that is not.
        """
        return check_array(
            self.column(name),
            source=self.folder,
            key=name,
            kinds="fiub",
            locate=self._locate,
            remedy="Leave the episode out, or repair the recording.",
        )

    def frame_order(self) -> Int64[np.ndarray, " F"]:
        """The episode of every frame. Raises UserError where frames lie in another order than meta/episodes says."""
        episodes = self.column("episode_index")
        for name in {"index", "frame_index"} & set(self.features):
            self.column(name)
        return episodes

    def task_positions(self) -> Int64[np.ndarray, " F"]:
        """For every frame the index of its instruction in `tasks`, found by its number in meta/tasks.parquet.

        Raises UserError naming the first number that the file does not have.
        """
        found = self.column("task_index")
        positions = self._tasks.positions(found)
        if (positions < 0).any():
            row = int(np.flatnonzero(positions < 0)[0])
            known = ", ".join(map(str, self._tasks.numbers[:12].tolist()))
            expected = f"the number of a task in {self._tasks.path} (which has {known})"
            said = Phrase(f"{found[row]} in {self._locate((row,))}")
            raise fault(self.folder, "task_index", expected, said, "Add the task to that file.")
        return positions

    def pictures(
        self, camera: str, episode: int, frames: Sequence[int] | None = None
    ) -> UInt8[np.ndarray, "L H W 3"]:
        """RGB pictures of an episode, all of them or the given frames (counted within the episode, ascending).

        In a video the picture of a frame is the one at the episode's `from_timestamp` plus the frame's `timestamp`,
        as lerobot reads it.
        """
        entry, feature = self._episode(episode), self.feature(camera)
        if not feature.rgb:
            raise UserError(
                f"{self.folder}: expected a camera of RGB pictures, got {camera!r}: {feature.dtype} of shape "
                f"{feature.shape}. Choose one of {', '.join(self.cameras) or 'none'}"
            )
        rows = np.arange(entry.length) if frames is None else np.asarray(frames, dtype=np.int64)
        size = 2 * len(rows) * int(np.prod(feature.shape))
        require_memory(size, f"{self.folder}: {len(rows)} pictures of {camera!r}", "Ask for fewer.")
        if feature.dtype == "video":
            seconds = entry.video_start[camera] + self._timestamps(entry)[rows]
            shape = (feature.shape[0], feature.shape[1])
            path = self._video_path(camera, entry)
            return decode_video(path, seconds, tolerance=0.5 / self.fps, shape=shape)
        first = entry.first_frame - self._file_start[entry.data_file]
        start, stop = first + int(rows[0]), first + int(rows[-1]) + 1
        stored = self._file(entry.data_file).read(camera, start, stop)
        result = np.empty((len(rows), *feature.shape), np.uint8)
        for target, row in zip(result, rows, strict=True):
            # one at a time: all rows may repeat one large value
            item = stored[int(row - rows[0])].as_py()
            target[:] = self._decode_stored(
                item, f"{camera!r}, episode {episode}, frame {row}", feature
            )
        return result

    def episode(self, index: int, *, pictures: bool = True) -> dict[str, Any]:
        """Every feature of one episode, shapes (L, ...), and its `task` text. Pictures are uint8 (L, H, W, 3)."""
        entry = self._episode(index)
        rows = slice(entry.first_frame, entry.first_frame + entry.length)
        result: dict[str, Any] = {name: self.column(name)[rows] for name in self._readable()}
        if pictures:
            result |= {name: self.pictures(name, index) for name in self.cameras}
        return result | {"task": self.tasks[int(self.task_positions()[entry.first_frame])]}

    def frame(self, index: int) -> dict[str, Any]:
        """Every feature of one frame of the dataset, and its `task` text."""
        if not 0 <= index < len(self):
            raise UserError(f"{self.folder}: expected a frame in 0..{len(self) - 1}, got {index}")
        entry = self._entry_of(index)
        result: dict[str, Any] = {name: self.column(name)[index] for name in self._readable()}
        for name in self.cameras:
            result[name] = self.pictures(name, entry.index, [index - entry.first_frame])[0]
        return result | {"task": self.tasks[int(self.task_positions()[index])]}

    def _readable(self) -> list[str]:
        return [n for n, f in self.features.items() if f.numeric or f.dtype == "string"]

    def _episode(self, index: int) -> EpisodeEntry:
        if not 0 <= index < len(self.episodes):
            raise UserError(
                f"{self.folder}: expected an episode in 0..{len(self.episodes) - 1}, got {index}"
            )
        return self.episodes[index]

    def _entry_of(self, frame: int) -> EpisodeEntry:
        return self.episodes[int(np.searchsorted(self._starts, frame, side="right")) - 1]

    def _locate(self, index: tuple[int, ...]) -> str:
        """Words for a place in a column, for errors."""
        entry = self._entry_of(index[0])
        where = f"episode {entry.index}, frame {index[0] - entry.first_frame}"
        return ", ".join([where, *(f"dimension {i}" for i in index[1:])])

    def _read_column(self, name: str, feature: Feature) -> np.ndarray:
        parts: list[np.ndarray] = []
        if feature.numeric:
            size = int(np.prod(feature.shape)) * np.dtype(feature.dtype).itemsize
            what = f"{self.folder}: the column {name!r}"
            require_memory(2 * size * len(self), what, "Take a part of the dataset.")
        for file, start in self._file_start.items():
            values, path = self._file(file).read(name), self._file(file).path

            def row_name(row: int, start: int = start) -> str:
                return self._locate((start + row,))

            if feature.numeric:
                part = numbers(
                    values, feature.shape, feature.dtype, source=path, key=name, row_name=row_name
                )
            else:
                found = texts(values, source=path, key=name, row_name=row_name)
                part = np.array(found, dtype=object)
            parts.append(part)
        return np.concatenate(parts)

    def _index_files(self) -> dict[tuple[int, int], int]:
        """The data files in order, each with the number of frames before it."""
        lengths: dict[tuple[int, int], int] = {}
        for entry in self.episodes:
            lengths[entry.data_file] = lengths.get(entry.data_file, 0) + entry.length
        order = [entry.data_file for entry in self.episodes]
        if order != sorted(order):
            raise UserError(
                f"{self.folder} is damaged: expected the episodes in the order of their data files. {REMEDY}"
            )
        starts: dict[tuple[int, int], int] = {}
        count = 0
        for file, length in lengths.items():
            starts[file] = count
            table = self._file(file)
            if table.rows != length:
                expected = f"{length} rows, the frames of its episodes in meta/episodes"
                raise fault(table.path, "", expected, Phrase(f"{table.rows}"), REMEDY)
            strange = [n for n in table.names if n not in self.features and not n.startswith("__")]
            if strange:
                # as lerobot does: a feature that was left out of the description would be lost without a word
                expected = "the features of meta/info.json alone as columns"
                raise fault(table.path, "", expected, Phrase(f"also {strange[0]!r}"), REMEDY)
            count += length
        return starts

    def _file(self, file: tuple[int, int]) -> Table:
        if file not in self._files:
            name = fill(self.info.data_path, {"chunk_index": file[0], "file_index": file[1]})
            source = self.folder / INFO_PATH
            self._files[file] = open_table(self.folder, name, source=source, key="data_path")
        return self._files[file]

    def _timestamps(self, entry: EpisodeEntry) -> Float64[np.ndarray, " L"]:
        """Seconds of an episode's frames since the start of its part of the video."""
        if "timestamp" not in self.features:
            return np.arange(entry.length) / self.fps
        rows = slice(entry.first_frame, entry.first_frame + entry.length)
        times = self.finite_column("timestamp").reshape(-1)[rows].astype(np.float64)
        back = np.flatnonzero(np.diff(times) < 0)
        if len(back):
            row = entry.first_frame + int(back[0]) + 1
            found = Phrase(
                f"{times[back[0] + 1]:g} after {times[back[0]]:g} in {self._locate((row,))}"
            )
            raise fault(self.folder, "timestamp", "times in ascending order", found, REMEDY)
        return times

    def _decode_stored(
        self, stored: Any, name: str, feature: Feature
    ) -> UInt8[np.ndarray, "H W 3"]:
        """A picture from `bytes`, or from the file that `path` names relative to the dataset."""
        data, path = (
            (stored.get("bytes"), stored.get("path")) if isinstance(stored, dict) else (None,) * 2
        )
        if not isinstance(data, bytes):
            file = path_inside(self.folder, path, source=self.folder, key=name)
            if not file.is_file():
                raise UserError(f"{self.folder}: a picture is missing: {name} ({path}). {REMEDY}")
            data = read_bytes(file, inside=self.folder, max_bytes=LARGEST_PICTURE)
        return decode_image(data, f"{self.folder}: {name}", (feature.shape[0], feature.shape[1]))

    def _video_path(self, camera: str, entry: EpisodeEntry) -> Path:
        chunk, file = entry.video_files[camera]
        places = {"video_key": camera, "chunk_index": chunk, "file_index": file}
        name = fill(self.info.video_path or "", places)
        return path_inside(self.folder, name, source=self.folder / INFO_PATH, key="video_path")

    def _check_rows(self, name: str, values: np.ndarray) -> None:
        lengths = [entry.length for entry in self.episodes]
        expected = np.arange(len(self))
        if name == "episode_index":
            expected = np.repeat(np.arange(len(lengths)), lengths)
        elif name == "frame_index":
            expected = expected - np.repeat(self._starts, lengths)
        if values.shape != expected.shape or not np.array_equal(values, expected):
            row = int(np.flatnonzero(values != expected)[0]) if values.ndim == 1 else 0
            raise UserError(
                f"{self.folder} is damaged: column {name!r} of frame {row} should be {expected[row]}, got "
                f"{values[row]}. {REMEDY}"
            )
