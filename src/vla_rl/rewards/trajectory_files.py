"""Trajectories with their details as a LeRobotDataset v3."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import numpy as np

from vla_rl.config.errors import UserError
from vla_rl.envs.registry import robots
from vla_rl.rewards.trajectories import Origin, Trajectory
from vla_rl.runtime.files import read_json, require_writable

ACTION_CHUNK = "action_chunk"


DETAILS = "meta/trajectories.json"


FORMAT = 1


def load_trajectories(
    folder: str | Path, *, action_chunk: int = 0, camera: str = "", image_size: int = 0
) -> list[Trajectory]:
    """Read the episodes of a LeRobotDataset v3.0: demonstrations, or what `save_trajectories` wrote.

    An episode succeeded if `next.success` says so in its last frame; without that feature all did, as demonstrations
    do. action_chunk: actions a turn; 0 takes those stored, one for demonstrations. There every
    frame is a turn, with the actions that follow it as far as the chunk goes. camera, image_size: as for
    `load_demonstrations`.

    Raises UserError for what the dataset reader refuses, and for trajectories that hold another chunk than asked for.
    """
    from vla_rl.data.demonstrations import action_chunks, load_demonstrations
    from vla_rl.data.lerobot import LeRobotReader

    demos = load_demonstrations(folder, camera=camera, image_size=image_size)
    reader = LeRobotReader(folder)
    details = _Details.read(reader.folder, len(reader.episodes))
    if ACTION_CHUNK in reader.features:
        chunks = reader.column(ACTION_CHUNK).reshape(len(demos), -1, demos.actions.shape[1])
    else:
        chunks = action_chunks(demos.actions, demos.episode_ids, action_chunk or 1)
    if ACTION_CHUNK in reader.features and action_chunk not in (0, chunks.shape[1]):
        raise UserError(
            f"{folder} holds turns of {chunks.shape[1]} actions each, {action_chunk} were asked for: leave it out, "
            "or collect trajectories of a policy that decides so many"
        )
    states = _column(reader, "initial_state", np.full(len(demos), -1))
    successes = _column(reader, "next.success", np.ones(len(demos), bool))
    robot = reader.info.robot_type or ""
    trajectories = []
    for entry in reader.episodes:
        rows = slice(entry.first_frame, entry.first_frame + entry.length)
        instruction = demos.instructions[int(demos.task_ids[entry.first_frame])]
        described = details.episodes[entry.index] if details.episodes else {}
        trajectories.append(
            Trajectory(
                images=demos.images[rows],
                proprio=demos.proprio[rows],
                actions=np.ascontiguousarray(chunks[rows], dtype=np.float32),
                instruction=instruction,
                task=described.get("task") or _task_of(instruction, robot),
                initial_state=int(states[entry.first_frame]),
                success=bool(successes[rows][-1]),
                source=cast(Origin, described.get("source", "expert")),
                turn_seconds=details.turn_seconds or 1.0 / reader.fps,
                robot=robot,
            )
        )
    return trajectories


def _column(reader: Any, name: str, otherwise: np.ndarray) -> np.ndarray:
    return reader.column(name) if name in reader.features else otherwise


def _task_of(instruction: str, robot: str) -> str:
    """The task's short name where the dataset does not tell: by what the benchmark calls this instruction."""
    played = robots().get(robot)
    return played.task_of_instruction(instruction) if played is not None else instruction


@dataclass(frozen=True)
class _Details:
    """meta/trajectories.json: what the dataset format has no place for. Empty for demonstrations."""

    turn_seconds: float = 0.0  # exact, where the format's frames a second are a whole number
    episodes: tuple[dict[str, str], ...] = ()  # {"task": ..., "source": ...}

    @staticmethod
    def read(folder: Path, count: int) -> _Details:
        path = folder / DETAILS
        if not path.is_file():
            return _Details()
        raw = read_json(path)
        try:
            if raw["format"] != FORMAT:
                raise UserError(f"{path}: expected format {FORMAT}, got {raw['format']}")
            details = _Details(
                float(raw["turn_seconds"]),
                tuple({"task": e["task"], "source": e["source"]} for e in raw["episodes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error!r}") from error
        if len(details.episodes) != count or any(
            e["source"] not in ("expert", "policy") for e in details.episodes
        ):
            raise UserError(
                f"{path} does not belong to this dataset: expected {count} episodes of expert or policy, got "
                f"{len(details.episodes)}"
            )
        return details

    def to_json(self) -> dict[str, Any]:
        episodes = list(self.episodes)
        return {"format": FORMAT, "turn_seconds": self.turn_seconds, "episodes": episodes}


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
        details = _Details(self._shape.turn_seconds, tuple(self._episodes))
        with self._writer:
            self._writer.add_json(DETAILS, details.to_json())

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
            "next.success": success,
            "initial_state": np.full(length, trajectory.initial_state),
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
