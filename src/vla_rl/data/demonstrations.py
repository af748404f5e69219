"""Demonstrations in memory: what supervised fine-tuning learns from, and how it is stored."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

from vla_rl.config.errors import UserError, nearest
from vla_rl.data.lerobot import Feature, LeRobotReader, vector
from vla_rl.data.lerobot import camera as pictures_of
from vla_rl.runtime.files import cannot_write
from vla_rl.runtime.images import ImageFit, make_square, square_side
from vla_rl.runtime.memory import SPARE, available_memory
from vla_rl.runtime.progress import console
from vla_rl.runtime.resizing import resize
from vla_rl.types import Observation

IMAGE = "observation.images.image"
STATE = "observation.state"
ACTION = "action"
NORMALISED_ROBOTS = ("metaworld_sawyer", "libero_panda")
"""`robot_type`s whose actions are known to span [-1, 1], where the caller knows of no others."""
CHUNK = 256
"""Pictures that are decoded at a time."""
ENVIRONMENT_FILE = "meta/environment.json"
"""Beside a dataset of our experts: the environment they were played in. Other readers do not mind it."""


def demonstration_features(
    image_size: int, proprio_size: int, action_size: int, *, video: bool
) -> dict[str, Feature]:
    """The features of a dataset of demonstrations; one frame is one action, held for several simulator steps."""
    return {
        IMAGE: pictures_of(image_size, image_size, video=video),
        STATE: vector(proprio_size),
        ACTION: vector(action_size),
        "next.reward": vector(1),
        "next.done": vector(1, dtype="bool"),
        "next.success": vector(1, dtype="bool"),
        "initial_state": vector(1, dtype="int64"),
    }


@dataclass(frozen=True)
class Demonstrations:
    """F frames of expert play, episode after episode. A frame holds what was seen before its action."""

    images: UInt8[np.ndarray, "F H W 3"]
    proprio: Float32[np.ndarray, "F P"]
    actions: Float32[np.ndarray, "F A"]
    episode_ids: Int64[np.ndarray, " F"]  # ascending
    task_ids: Int64[np.ndarray, " F"]  # index into `instructions`
    instructions: tuple[str, ...]
    action_low: Float64[np.ndarray, " A"]  # the action that -1 stands for
    action_high: Float64[np.ndarray, " A"]  # the action that +1 stands for
    image_fit: ImageFit | None = None
    """How the camera's frames became square; None where they were."""

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def image_size(self) -> int:
        return self.images.shape[1]

    @property
    def num_episodes(self) -> int:
        return len(np.unique(self.episode_ids))

    def observation(self, rows: Int64[np.ndarray, " B"]) -> Observation:
        """What the policy sees at the given frames. `time_fraction` is 0: a demonstration knows no horizon."""
        return Observation(
            self.images[rows],
            tuple(self.instructions[i] for i in self.task_ids[rows]),
            self.proprio[rows],
            np.zeros(len(rows), dtype=np.float32),
        )

    def split(
        self, validation_fraction: float, rng: np.random.Generator
    ) -> tuple[Int64[np.ndarray, " T"], Int64[np.ndarray, " V"]]:
        """Frames to train on and frames held out, by whole episodes and for each task alike.

        Of a task with n episodes, round(fraction * n) are held out; at least one where n >= 5 and the fraction
        is positive, never all of them.
        """
        held_out: list[int] = []
        for task in np.unique(self.task_ids):
            episodes = np.unique(self.episode_ids[self.task_ids == task])
            count = round(validation_fraction * len(episodes))
            if validation_fraction > 0 and len(episodes) >= 5:
                count = max(count, 1)
            held_out += list(rng.permutation(episodes)[: min(count, len(episodes) - 1)])
        validation = np.isin(self.episode_ids, held_out)
        return np.flatnonzero(~validation), np.flatnonzero(validation)


def load_demonstrations(
    folder: str | Path,
    *,
    action_size: int | None = None,
    camera: str = "",
    image_size: int = 0,
    image_fit: ImageFit | None = None,
    scratch: Path | None = None,
    normalised_robots: Collection[str] = NORMALISED_ROBOTS,
    episodes_per_task: int = 0,
    episodes: Int64[np.ndarray, " E"] | None = None,
) -> Demonstrations:
    """Read a LeRobotDataset v3.0 into memory, pictures as one uint8 array.

    camera: the feature that holds the pictures; empty takes `observation.images.image`, or the only camera.
    image_size: height and width to which pictures are resized; 0 keeps them. image_fit: how frames that are not
    square become it; None refuses them. scratch: a folder on a disk for pictures that do not fit into memory; they
    are then mapped from a temporary file, which is gone when the process ends. normalised_robots: `robot_type`s whose
    actions span [-1, 1] by definition. episodes_per_task: the first so many of each task, as if the dataset had no
    others; 0 takes all. episodes: the numbers of those to read; None reads all.

    Raises UserError for what LeRobotReader refuses, for missing features, for actions or states that are not finite,
    where `action_size` is given and the dataset's actions have another size, where a task has fewer episodes than
    asked for, and for pictures that fit neither into memory nor on the disk, before any is read.
    """
    reader = LeRobotReader(folder)
    camera = _choose_camera(reader, camera)
    height, width, _ = reader.feature(camera).shape
    if action_size is not None:
        reader.require_size(ACTION, action_size)
    if height != width and image_fit is None:
        raise UserError(
            f"{folder}: expected square pictures in {camera!r}, got {height} x {width}. Convert the dataset to square "
            "pictures; vla-rl sft takes it as it is (--image-fit)."
        )
    episode_ids = reader.frame_order()
    task_ids = reader.task_positions()
    kept = _first_of_each_task(reader, episode_ids, task_ids, episodes_per_task)
    if episodes is not None:
        kept = kept[np.isin(episode_ids[kept], episodes)]
    episode_ids, task_ids = episode_ids[kept], task_ids[kept]
    actions = _vectors(reader, ACTION)[kept]
    low, high = _action_range(reader, actions, normalised_robots)
    proprio = (
        _vectors(reader, STATE)[kept]
        if STATE in reader.features
        else np.zeros((len(kept), 0), dtype=np.float32)
    )
    fit = image_fit or "stretch"
    size = image_size or square_side(height, width, fit)
    images = picture_array(len(kept), size, scratch, f"{folder}: {camera!r}")
    _read_pictures(reader, camera, set(episode_ids.tolist()), fit, images)
    return Demonstrations(
        images, proprio, actions, episode_ids, task_ids, reader.tasks, low, high,
        image_fit=None if height == width else fit,
    )  # fmt: skip


def _read_pictures(
    reader: LeRobotReader,
    camera: str,
    episodes: Collection[int],
    fit: ImageFit,
    images: UInt8[np.ndarray, "F S S 3"],
) -> None:
    """Fill `images` with the frames of these episodes, in the dataset's order, made square and S pixels wide."""
    place = 0
    for entry in reader.episodes:
        if entry.index not in episodes:
            continue
        for start in range(0, entry.length, CHUNK):
            stop = min(start + CHUNK, entry.length)
            seen = make_square(reader.pictures(camera, entry.index, range(start, stop)), fit)
            images[place : place + stop - start] = resize(seen, images.shape[1])
            place += stop - start


def _first_of_each_task(
    reader: LeRobotReader,
    episode_ids: Int64[np.ndarray, " F"],
    task_ids: Int64[np.ndarray, " F"],
    count: int,
) -> Int64[np.ndarray, " K"]:
    """The frames of the first `count` episodes of each task; all of them for 0."""
    if count == 0:
        return np.arange(len(episode_ids))
    kept: list[int] = []
    for task in np.unique(task_ids):
        episodes = np.unique(episode_ids[task_ids == task])
        if len(episodes) < count:
            raise UserError(
                f"{reader.folder}: {count} episodes of each task were asked for, and {reader.tasks[task]!r} has "
                f"{len(episodes)}. Ask for fewer, or collect more"
            )
        kept += episodes[:count].tolist()
    return np.flatnonzero(np.isin(episode_ids, kept))


def _vectors(reader: LeRobotReader, name: str) -> Float32[np.ndarray, "F D"]:
    """A feature of D numbers a frame, checked to be finite; one number a frame is D = 1, however it is stored."""
    feature = reader.feature(name)
    if not feature.numeric or len(feature.shape) != 1:
        raise UserError(
            f"{reader.folder}: expected {name!r} to be a vector of numbers, got {feature.dtype} of shape "
            f"{feature.shape}. Take a dataset whose {name!r} is one."
        )
    values = reader.finite_column(name).reshape(len(reader), -1)
    return np.ascontiguousarray(values, dtype=np.float32)


def picture_array(
    frames: int, size: int, scratch: Path | None, what: str
) -> UInt8[np.ndarray, "F S S 3"]:
    """Room for F pictures: in memory, else in a temporary file without a name in the folder `scratch`.

    Raises UserError, stating the need and what is free, where they fit into neither.
    """
    need, free = frames * size * size * 3, available_memory()
    if need <= SPARE * free:
        return np.empty((frames, size, size, 3), dtype=np.uint8)
    said = (
        f"{what}: {frames:,} pictures of {size} x {size} take {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of "
        "memory are free"
    )
    fitting = int((0.8 * free / (3 * frames)) ** 0.5) // 16 * 16
    advice = (
        f"Give a smaller --image-size ({fitting} fits)" if fitting >= 32 else "Take fewer episodes"
    )
    if scratch is None:
        raise UserError(f"{said}. {advice}.")
    disk = shutil.disk_usage(scratch).free
    if need > SPARE * disk:
        raise UserError(f"{said}, and {disk / 1e9:,.1f} GB on the disk of {scratch}. {advice}.")
    console().print(
        f"{said}: they are kept in a temporary file on the disk of {scratch}", markup=False
    )
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:  # the mapping keeps it
            return np.memmap(file, dtype=np.uint8, mode="w+", shape=(frames, size, size, 3))
    except OSError as error:
        raise UserError(f"{cannot_write(scratch, error)}. {said}. {advice}.") from error


def _choose_camera(reader: LeRobotReader, wanted: str) -> str:
    """The camera to learn from: the one that is wanted, ours, or the only one there is."""
    if not reader.cameras:
        raise UserError(f"{reader.folder}: expected a camera, got a dataset without pictures")
    if wanted and wanted not in reader.cameras:
        raise UserError(
            f"{reader.folder} has no camera {wanted!r}.{nearest(wanted, reader.cameras)}"
        )
    chosen = wanted or (reader.cameras[0] if len(reader.cameras) == 1 else IMAGE)
    if chosen not in reader.cameras:
        raise UserError(
            f"{reader.folder} has {len(reader.cameras)} cameras, none of them {IMAGE!r}: say which one to learn "
            f"from (sft: --camera). There are {', '.join(reader.cameras)}"
        )
    return chosen


def action_chunks(
    actions: Float32[np.ndarray, "F A"], episode_ids: Int64[np.ndarray, " F"], chunk: int
) -> Float32[np.ndarray, "F C A"]:
    """For every frame t the actions t .. t+C-1 of its episode; past the end its last action is repeated.

    Every frame starts a chunk, not only every C-th: at run time a turn may begin anywhere.
    """
    last = np.searchsorted(episode_ids, episode_ids, side="right") - 1
    ahead = np.arange(len(actions))[:, None] + np.arange(chunk)
    return actions[np.minimum(ahead, last[:, None])]


def _action_range(
    reader: LeRobotReader, actions: Float32[np.ndarray, "F A"], normalised_robots: Collection[str]
) -> tuple[Float64[np.ndarray, " A"], Float64[np.ndarray, " A"]]:
    """What -1 and +1 stand for.

    Simulators define their actions in [-1, 1] and our experts saturate them, so they are kept: quantiles of a few
    demonstrations would cut off ends that the expert needs, and would differ from dataset to dataset. Elsewhere
    the 1 % and 99 % quantiles, as OpenVLA does.
    """
    size = actions.shape[1]
    if reader.info.robot_type in normalised_robots:
        return np.full(size, -1.0), np.ones(size)
    low, high = np.quantile(actions.astype(np.float64), [0.01, 0.99], axis=0)
    return low, high
