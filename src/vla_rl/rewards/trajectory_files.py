"""Trajectories with their details as a LeRobotDataset v3."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt, Le, MaxLen, MinLen

from vla_rl.config.errors import UserError
from vla_rl.envs.registry import robots
from vla_rl.rewards.trajectories import Origin, Trajectory
from vla_rl.runtime.external import Phrase, fault, read_json
from vla_rl.runtime.files import require_writable
from vla_rl.runtime.images import ImageFit

ACTION_CHUNK = "action_chunk"
INITIAL_STATE = "initial_state"
SUCCESS = "next.success"
DETAILS = "meta/trajectories.json"
FORMAT = 1
REMEDY = "Copy the dataset again, or collect the trajectories again."


def load_trajectories(
    folder: str | Path,
    *,
    action_chunk: int = 0,
    camera: str = "",
    image_size: int = 0,
    image_fit: ImageFit | None = None,
) -> list[Trajectory]:
    """Read the episodes of a LeRobotDataset v3.0: demonstrations, or what `save_trajectories` wrote.

    An episode succeeded if `next.success` says so in its last frame. Without that feature all did, as demonstrations
    do. action_chunk: actions a turn; 0 takes those stored, one for demonstrations. Of demonstrations every frame is a
    turn, with the actions that follow it as far as the chunk goes. camera, image_size, image_fit: as for
    `load_demonstrations`.

    Raises UserError for what the dataset reader refuses, for details that are damaged or of another dataset, and for
    trajectories that hold another chunk than asked for.
    """
    from vla_rl.data.demonstrations import load_demonstrations
    from vla_rl.data.lerobot import LeRobotReader

    demos = load_demonstrations(folder, camera=camera, image_size=image_size, image_fit=image_fit)
    reader = LeRobotReader(folder)
    details = _read_details(reader.folder, len(reader.episodes))
    chunks = _chunks(reader, demos, action_chunk)
    states = _whole_numbers(reader, INITIAL_STATE, np.full(len(demos), -1))
    successes = _whole_numbers(reader, SUCCESS, np.ones(len(demos), bool))
    robot = reader.info.robot_type or ""
    trajectories: list[Trajectory] = []
    for entry in reader.episodes:
        rows = slice(entry.first_frame, entry.first_frame + entry.length)
        instruction = demos.instructions[int(demos.task_ids[entry.first_frame])]
        described = details.episodes[entry.index] if details else None
        trajectories.append(
            Trajectory(
                images=demos.images[rows],
                proprio=demos.proprio[rows],
                actions=np.ascontiguousarray(chunks[rows], dtype=np.float32),
                instruction=instruction,
                task=described.task if described else _task_of(instruction, robot),
                initial_state=int(states[entry.first_frame]),
                success=bool(successes[rows][-1]),
                source=described.source if described else "expert",
                turn_seconds=details.seconds if details else 1.0 / reader.fps,
                robot=robot,
            )
        )
    return trajectories


def _chunks(reader: Any, demos: Any, action_chunk: int) -> np.ndarray:
    """The actions of every turn, (F, C, A). UserError for stored chunks that do not fit."""
    from vla_rl.data.demonstrations import action_chunks

    if ACTION_CHUNK not in reader.features:
        return action_chunks(demos.actions, demos.episode_ids, action_chunk or 1)
    size = demos.actions.shape[1]
    stored = reader.finite_column(ACTION_CHUNK).reshape(len(demos), -1)
    if stored.dtype.kind != "f" or stored.shape[1] % size:
        found = Phrase(f"{stored.shape[1]} of type {stored.dtype}")
        expected = f"whole actions of {size} numbers each"
        raise fault(reader.folder, ACTION_CHUNK, expected, found, REMEDY)
    chunks = stored.reshape(len(demos), -1, size)
    if action_chunk not in (0, chunks.shape[1]):
        raise UserError(
            f"{reader.folder} holds turns of {chunks.shape[1]} actions each, {action_chunk} were asked for: leave it "
            "out, or collect trajectories of a policy that decides so many"
        )
    return chunks


def _whole_numbers(reader: Any, name: str, otherwise: np.ndarray) -> np.ndarray:
    """A column of one whole number or truth value a frame; `otherwise` where there is none."""
    if name not in reader.features:
        return otherwise
    feature = reader.feature(name)
    values = reader.finite_column(name) if feature.numeric else np.zeros(0)
    if values.shape != otherwise.shape or values.dtype.kind not in "biu":
        found = Phrase(f"{feature.dtype} of shape {feature.shape}")
        expected = "one whole number, or true or false, a frame"
        raise fault(reader.folder, name, expected, found, REMEDY)
    return values


def _task_of(instruction: str, robot: str) -> str:
    """The task's short name where the dataset does not tell: by what the benchmark calls this instruction."""
    played = robots().get(robot)
    return played.task_of_instruction(instruction) if played is not None else instruction


# --------------------------------------------------------------------------------------------------
# meta/trajectories.json: what the dataset format has no place for

_Seconds = Annotated[float, Gt(0), Le(3600)]


@dataclass(frozen=True)
class _Episode:
    task: Annotated[str, MinLen(1), MaxLen(1000)]
    source: Origin


@dataclass(frozen=True)
class _Details:
    format: int
    episodes: list[_Episode]
    turn_seconds: _Seconds | None = None
    """Exact, where the format's frames a second are a whole number."""
    decision_seconds: _Seconds | None = None
    """Its name before."""

    @property
    def seconds(self) -> float:
        found = self.turn_seconds or self.decision_seconds
        assert found is not None, "checked when it was read"
        return found


def _read_details(folder: Path, count: int) -> _Details | None:
    """None for a dataset without them, as demonstrations are."""
    path = folder / DETAILS
    if not path.is_file():
        return None
    details = read_json(path, _Details, inside=folder, remedy=REMEDY)
    if details.format != FORMAT:
        raise fault(path, "format", str(FORMAT), details.format, REMEDY)
    if details.turn_seconds is None and details.decision_seconds is None:
        raise fault(path, "", 'the key "turn_seconds"', Phrase("none"), REMEDY)
    if len(details.episodes) != count:
        found = Phrase(f"{len(details.episodes)}: it does not belong to this dataset")
        raise fault(path, "episodes", f"{count} episodes, as in the dataset", found, REMEDY)
    return details


# --------------------------------------------------------------------------------------------------
# Writing


@dataclass
class _Shape:
    """What all trajectories of one dataset have in common."""

    image_size: int
    proprio: int
    chunk: int
    action: int
    turn_seconds: float
    robot: str

    @staticmethod
    def of(trajectory: Trajectory) -> _Shape:
        height, width = trajectory.images.shape[1:3]
        if height != width:
            raise UserError(f"{trajectory.name}: expected square images, got {height} x {width}")
        _, chunk, action = trajectory.actions.shape
        return _Shape(
            height, trajectory.proprio.shape[1], chunk, action, trajectory.turn_seconds, trajectory.robot
        )  # fmt: skip


@dataclass
class TrajectoryWriter:
    """Writes trajectories to a new LeRobotDataset v3.0, one at a time; use it as a context manager.

    Beside the columns of demonstrations: `next.success` is false throughout for failures, and where a turn has
    several actions `action` is the first and `action_chunk` all of them, flattened. Final images are not kept.
    UserError if the folder exists, or for a trajectory of another size, rate or robot than the first.
    """

    folder: str | Path
    image_format: Literal["png", "mp4"] = "png"
    _writer: Any = None
    _shape: _Shape | None = None
    _episodes: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if Path(self.folder).exists():
            raise UserError(
                f"{self.folder} exists already: a dataset is never overwritten. Choose another folder or remove it."
            )
        require_writable(Path(self.folder), "folder")

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is None:
            if kind is None:
                raise UserError(f"{self.folder}: there was no trajectory to write")
            return
        if kind is not None:
            self._writer.__exit__(kind, error, trace)
            return
        assert self._shape is not None
        details = {
            "format": FORMAT,
            "turn_seconds": self._shape.turn_seconds,
            "episodes": self._episodes,
        }
        with self._writer:
            self._writer.add_json(DETAILS, details)

    def add(self, trajectory: Trajectory) -> None:
        """Append one episode."""
        from vla_rl.data.demonstrations import ACTION, IMAGE, STATE

        shape = _Shape.of(trajectory)
        if self._shape is None:
            self._shape, self._writer = shape, _open(self.folder, shape, self.image_format)
        elif shape != self._shape:
            raise UserError(
                f"{trajectory.name}: expected it like the first of {self.folder}, {self._shape}, got {shape}"
            )
        length = len(trajectory)
        last = np.arange(length) == length - 1
        success = last & trajectory.success
        columns = {
            IMAGE: trajectory.images,
            ACTION: trajectory.actions[:, 0],
            "next.reward": success.astype(np.float32),
            "next.done": last,
            SUCCESS: success,
            INITIAL_STATE: np.full(length, trajectory.initial_state),
        }
        if shape.proprio:
            columns[STATE] = trajectory.proprio
        if shape.chunk > 1:
            columns[ACTION_CHUNK] = trajectory.actions.reshape(length, -1)
        self._writer.add_episode(columns, task=trajectory.instruction)
        self._episodes.append({"task": trajectory.task, "source": trajectory.source})


def _open(folder: str | Path, shape: _Shape, image_format: str) -> Any:
    from vla_rl.data.demonstrations import STATE, demonstration_features
    from vla_rl.data.lerobot import LeRobotWriter, vector

    features = demonstration_features(
        shape.image_size, shape.proprio, shape.action, video=image_format == "mp4"
    )
    if not shape.proprio:
        del features[STATE]
    if shape.chunk > 1:
        features[ACTION_CHUNK] = vector(shape.chunk * shape.action)
    fps = max(1, round(1 / shape.turn_seconds))
    return LeRobotWriter(folder, fps=fps, features=features, robot_type=shape.robot or None)


def save_trajectories(
    folder: str | Path,
    trajectories: Iterable[Trajectory],
    *,
    image_format: Literal["png", "mp4"] = "png",
) -> Path:
    """Write them, in order, as a new LeRobotDataset v3.0 and return its folder: see `TrajectoryWriter`."""
    with TrajectoryWriter(folder, image_format) as writer:
        for trajectory in trajectories:
            writer.add(trajectory)
    return Path(folder)
