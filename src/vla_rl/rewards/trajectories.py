"""Whole episodes as the reward model's data: read from datasets, written to them, cut out of rollout windows.

    load_trajectories("runs/demos")                       # demonstrations: all successes
    save_trajectories("runs/play", trajectories)          # a LeRobotDataset v3, failures among them
    cutter = EpisodeCutter(policy, env)                   # practice: episodes run on across window edges
    trajectories = cutter.add(rollout)

Cutting windows needs numpy alone; pyarrow is imported where a dataset is touched, since practice has to run without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import UserError
from vla_rl.envs.metaworld.tasks import INSTRUCTIONS
from vla_rl.envs.registry import benchmark
from vla_rl.runtime.files import read_json, write_json
from vla_rl.types import Rollout

Origin = Literal["expert", "policy"]
ACTION_CHUNK = "action_chunk"
DETAILS = "meta/trajectories.json"
FORMAT = 1


@dataclass(frozen=True)
class Trajectory:
    """One episode as the reward model's data: T decisions, what was seen before each, and how it ended.

    UserError if the parts do not fit together, or if there is no decision.
    """

    images: UInt8[np.ndarray, "T H W 3"]  # before each decision
    proprio: Float32[np.ndarray, "T P"]  # P may be 0
    actions: Float32[np.ndarray, "T C A"]  # the chunk of each decision, simulator units in [-1, 1]
    instruction: str
    task: str
    initial_state: int  # -1: not known
    success: bool
    source: Origin
    final_image: UInt8[np.ndarray, "H W 3"] | None = (
        None  # after the last decision; not stored in datasets
    )
    decision_seconds: float = 0.0625  # robot time from one decision to the next
    robot: str = ""  # as datasets name it (robot_type); says what proprio and actions hold

    def __post_init__(self) -> None:
        shapes = self.images.shape, self.proprio.shape, self.actions.shape
        lengths = {len(self.images), len(self.proprio), len(self.actions)}
        if [len(shape) for shape in shapes] != [4, 2, 3] or len(lengths) != 1:
            raise UserError(
                f"{self.name}: expected images (T, H, W, 3), proprio (T, P) and actions (T, C, A) of one length, got "
                f"{shapes[0]}, {shapes[1]} and {shapes[2]}"
            )
        if 0 in lengths:
            raise UserError(f"{self.name}: expected at least one decision, got none")
        if not self.decision_seconds > 0:
            raise UserError(
                f"{self.name}: expected a positive time between decisions, got {self.decision_seconds}"
            )

    def __len__(self) -> int:
        """T, the number of decisions."""
        return len(self.actions)

    @property
    def name(self) -> str:
        """For people: the task and its initial state."""
        return f"{self.task} (initial state {self.initial_state}, {self.source})"


class DecodesActions(Protocol):
    """The part of a policy that turns tokens into actions."""

    def decode_actions(self, tokens: Int64[Tensor, "N K"]) -> Float32[np.ndarray, "N C A"]: ...


# --------------------------------------------------------------------------------------------------
# From rollout windows


@dataclass
class _Piece:
    """Turns of one running episode that lie in one window."""

    images: UInt8[np.ndarray, "t H W 3"]
    proprio: Float32[np.ndarray, "t P"]
    tokens: Int64[np.ndarray, "t K"]


class EpisodeCutter:
    """Cuts consecutive rollout windows into whole episodes; those still running wait for the next window.

    Episodes whose beginning was not seen (the first window of a resumed run) or that were lost with their simulator are
    left out.
    """

    def __init__(self, policy: DecodesActions, env: EnvConfig) -> None:
        played = benchmark(env.suite)
        self._policy = policy
        self._robot = played.robot
        steps = env.action_chunk * env.action_repeat
        self._decision_seconds = steps / played.simulator_rate
        self._running: dict[int, list[_Piece]] = {}  # slot -> its episode, as far as it was seen

    def add(self, rollout: Rollout) -> list[Trajectory]:
        """The episodes that ended in `rollout`, ordered by when they did. It must follow the last one given."""
        turns, slots = rollout.rewards.shape
        ended = rollout.terminated | rollout.truncated
        finished: list[tuple[int, int, Trajectory]] = []
        for slot in range(slots):
            start = 0
            for turn in range(turns):
                if rollout.time_fraction[turn, slot] == 0:  # an episode begins here
                    self._running[slot], start = [], turn
                if not rollout.valid[turn, slot]:
                    self._running.pop(slot, None)
                elif ended[turn, slot] and slot in self._running:
                    self._extend(rollout, slot, start, turn + 1)
                    finished.append((turn, slot, self._close(rollout, slot, turn)))
            if slot in self._running:
                self._extend(rollout, slot, start, turns)
        return [trajectory for _, _, trajectory in sorted(finished, key=lambda found: found[:2])]

    def _extend(self, rollout: Rollout, slot: int, start: int, stop: int) -> None:
        rows = slice(start, stop)
        # copies: a view would keep the whole window's pictures in memory
        piece = _Piece(
            rollout.images[rows, slot].copy(),
            rollout.proprio[rows, slot].copy(),
            rollout.tokens[rows, slot].copy(),
        )
        self._running[slot].append(piece)

    def _close(self, rollout: Rollout, slot: int, turn: int) -> Trajectory:
        pieces = self._running.pop(slot)
        task = int(rollout.task_ids[turn, slot])
        tokens = np.concatenate([piece.tokens for piece in pieces])
        return Trajectory(
            images=np.concatenate([piece.images for piece in pieces]),
            proprio=np.concatenate([piece.proprio for piece in pieces]),
            actions=self._policy.decode_actions(torch.from_numpy(tokens)),
            instruction=rollout.instructions[task],
            task=rollout.tasks[task],
            initial_state=int(rollout.initial_states[turn, slot]),
            success=bool(rollout.terminated[turn, slot]),
            source="policy",
            decision_seconds=self._decision_seconds,
            robot=self._robot,
        )


def trajectories_of(
    rollouts: Sequence[Rollout], policy: DecodesActions, env: EnvConfig
) -> list[Trajectory]:
    """The whole episodes in consecutive windows, those across their edges among them."""
    cutter = EpisodeCutter(policy, env)
    return [trajectory for rollout in rollouts for trajectory in cutter.add(rollout)]


# --------------------------------------------------------------------------------------------------
# Datasets


def load_trajectories(
    folder: str | Path, *, action_chunk: int = 0, camera: str = "", image_size: int = 0
) -> list[Trajectory]:
    """Read the episodes of a LeRobotDataset v3.0: demonstrations, or what `save_trajectories` wrote.

    An episode succeeded if `next.success` says so in its last frame; without that feature all did, as demonstrations
    do. action_chunk: actions a decision; 0 takes those stored, one for demonstrations. There every
    frame is a decision, with the actions that follow it as far as the chunk goes. camera, image_size: as for
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
            f"{folder} holds decisions of {chunks.shape[1]} actions each, {action_chunk} were asked for: leave it out, "
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
                decision_seconds=details.decision_seconds or 1.0 / reader.fps,
                robot=robot,
            )
        )
    return trajectories


def _column(reader: Any, name: str, otherwise: np.ndarray) -> np.ndarray:
    return reader.column(name) if name in reader.features else otherwise


def _task_of(instruction: str, robot: str) -> str:
    """The task's short name where the dataset does not tell: by what the benchmark calls this instruction."""
    if robot == "metaworld_sawyer":
        by_text = {text: task for task, text in INSTRUCTIONS.items()}
        return by_text.get(instruction, instruction)
    return instruction.replace(" ", "_") if robot in ("libero_panda", "panda") else instruction


@dataclass(frozen=True)
class _Details:
    """meta/trajectories.json: what the dataset format has no place for. Empty for demonstrations."""

    decision_seconds: float = 0.0  # exact, where the format's frames a second are a whole number
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
                float(raw["decision_seconds"]),
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

    def write(self, folder: Path) -> None:
        episodes = list(self.episodes)
        write_json(
            folder / DETAILS,
            {"format": FORMAT, "decision_seconds": self.decision_seconds, "episodes": episodes},
        )


@dataclass
class _Shape:
    """What all trajectories of one dataset have in common."""

    image_size: int
    proprio: int
    chunk: int
    action: int
    decision_seconds: float
    robot: str

    @staticmethod
    def of(trajectory: Trajectory) -> _Shape:
        height, width = trajectory.images.shape[1:3]
        if height != width:
            raise UserError(f"{trajectory.name}: expected square pictures, got {height} x {width}")
        _, chunk, action = trajectory.actions.shape
        return _Shape(
            height, trajectory.proprio.shape[1], chunk, action, trajectory.decision_seconds, trajectory.robot
        )  # fmt: skip


@dataclass
class TrajectoryWriter:
    """Writes trajectories to a new LeRobotDataset v3.0, one at a time; use it as a context manager.

    Beside the columns of demonstrations: `next.success` is false throughout for failures, and where a decision has
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
        self._writer.__exit__(kind, error, trace)
        if kind is None:
            assert self._shape is not None
            details = _Details(self._shape.decision_seconds, tuple(self._episodes))
            details.write(Path(self.folder))

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
    fps = max(1, round(1 / shape.decision_seconds))
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
