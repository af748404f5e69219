"""meta/info.json from outside: read through a typed schema, its path patterns checked before they are filled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from vla_rl.config.errors import UserError
from vla_rl.data.lerobot.schema import (
    CODEBASE_VERSION,
    DATA_PATH,
    INFO_PATH,
    VIDEO_PATH,
    DatasetInfo,
    Feature,
)
from vla_rl.runtime.external import dotted, fault, parse_json, path_inside, read_bytes

MOST_BYTES = 16 * 2**20
PLACE = re.compile(r"\{(\w+)(?::0?\d?d?)?\}")
"""`{chunk_index}` or `{chunk_index:03d}`: a width of one digit, and nothing else that a format string can do."""
CONVERT = (
    "Convert older datasets with lerobot's own script, lerobot.scripts.convert_dataset_v21_to_v30."
)
REMEDY = "Fetch the dataset again, or correct the file."

Size = Annotated[int, Ge(1), Le(65_536)]
Count = Annotated[int, Ge(0), Le(2**40)]
Dtype = Literal[
    "float32", "float64", "float16", "bool",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "string", "language", "image", "video",
]  # fmt: skip


@dataclass(frozen=True)
class _FeatureEntry:
    dtype: Dtype
    shape: Annotated[tuple[Size, ...], MinLen(1), MaxLen(5)]
    names: Any = None
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None


@dataclass(frozen=True)
class _InfoFile:
    fps: Annotated[float, Gt(0), Le(100_000)]
    features: dict[str, _FeatureEntry]
    total_episodes: Count
    total_frames: Count
    total_tasks: Count = 0
    robot_type: str | None = None
    data_path: str = DATA_PATH
    video_path: str | None = VIDEO_PATH


def read_info(folder: Path) -> DatasetInfo:
    """Read and check meta/info.json. Raises UserError naming what was expected and what came."""
    path = folder / INFO_PATH
    expected = f"expected the folder of a LeRobotDataset {CODEBASE_VERSION}, got {folder}"
    if not folder.is_dir():
        raise UserError(
            f"{expected}: no such folder. Collect demonstrations first (vla-rl demos), or give the path of a dataset."
        )
    if not path.is_file():
        raise UserError(
            f"{expected}: {INFO_PATH} is missing. Give the folder that holds meta/ and data/."
        )
    content = read_bytes(path, inside=folder, max_bytes=MOST_BYTES, remedy=REMEDY)
    version = parse_json(content, source=path, remedy=REMEDY).get("codebase_version")
    if version != CODEBASE_VERSION:
        raise fault(path, "codebase_version", CODEBASE_VERSION, version, CONVERT)
    raw = parse_json(content, _InfoFile, source=path, remedy=REMEDY)
    if raw.total_episodes < 1 or raw.total_frames < 1:
        raise UserError(
            f"{folder} is an empty dataset: expected at least one episode, got "
            f"{raw.total_episodes} episodes with {raw.total_frames} frames. Record some, or take another dataset."
        )
    features = {
        name: _feature(entry, path, dotted(("features", name, "shape")))
        for name, entry in raw.features.items()
    }
    _check_patterns(folder, raw, features)
    return DatasetInfo(
        fps=int(raw.fps) if raw.fps.is_integer() else raw.fps,
        features=features,
        total_episodes=raw.total_episodes,
        total_frames=raw.total_frames,
        total_tasks=raw.total_tasks,
        robot_type=raw.robot_type,
        data_path=raw.data_path,
        video_path=raw.video_path,
    )


def fill(pattern: str, values: Mapping[str, int | str]) -> str:
    """A path pattern of info.json with its places filled; both were checked when the dataset was opened."""
    return pattern.format(**values)


def _feature(entry: _FeatureEntry, path: Path, key: str) -> Feature:
    names = tuple(entry.names) if isinstance(entry.names, list) else None
    shape = entry.shape
    if entry.dtype in ("image", "video"):
        if len(shape) == 3 and shape[0] == 3 != shape[2]:
            # some datasets name the channels first; the pictures themselves are stored alike
            shape = (*shape[1:], 3)
            names = (*names[1:], names[0]) if names else names
        if len(shape) != 3 or shape[2] > 4:
            expected = "height, width and channels of a camera"
            raise fault(path, key, expected, list(entry.shape), REMEDY)
    info = {**(entry.video_info or {}), **(entry.info or {})}
    return Feature(entry.dtype, shape, names, info)


def _check_patterns(folder: Path, raw: _InfoFile, features: Mapping[str, Feature]) -> None:
    """Refuse a pattern with other places than those of v3, or that leads out of the folder."""
    path = folder / INFO_PATH
    numbers = {"chunk_index": 0, "file_index": 0}
    _check_pattern(folder, raw.data_path, "data_path", DATA_PATH, numbers)
    for name, feature in features.items():
        if feature.dtype == "video":
            if raw.video_path is None:
                expected = f"a path pattern, as the feature {name!r} is a video"
                raise fault(path, "video_path", expected, None, REMEDY)
            places = {**numbers, "video_key": name}
            _check_pattern(folder, raw.video_path, "video_path", VIDEO_PATH, places)


def _check_pattern(
    folder: Path, pattern: str, key: str, example: str, values: Mapping[str, int | str]
) -> None:
    path = folder / INFO_PATH
    # without a format after them, texts take any place; numbers are the only ones with a width
    plain = all(
        found[1] in values and (isinstance(values[found[1]], int) or ":" not in found[0])
        for found in PLACE.finditer(pattern)
    )
    if not plain or set(PLACE.sub("", pattern)) & set("{}"):
        places = ", ".join(f"{{{name}}}" for name in values)
        raise fault(
            path, key, f"a path with the places {places}, as in {example}", pattern, CONVERT
        )
    path_inside(folder, fill(pattern, values), source=path, key=key)
