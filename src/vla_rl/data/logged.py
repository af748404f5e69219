"""Logged episodes with their outcomes: what a policy or a person did on a robot, as a LeRobotDataset v3 holds it.

Nothing of a simulator is asked for. A turn's actions are the feature `action_chunk` where there is one, as
`vla-rl reward collect` writes it, else the actions from its frame on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vla_rl.config.errors import UserError
from vla_rl.data.demonstrations import (
    NORMALISED_ROBOTS,
    Demonstrations,
    action_chunks,
    load_demonstrations,
)
from vla_rl.data.lerobot import LeRobotReader
from vla_rl.runtime.external import Phrase, fault
from vla_rl.runtime.images import ImageFit

ACTION_CHUNK, SUCCESS, INITIAL_STATE = "action_chunk", "next.success", "initial_state"
REMEDY = "Log the episodes again, or give another dataset."
Outcome = Literal["all", "success", "failure"]


@dataclass(frozen=True)
class LoggedEpisodes:
    """F frames of E episodes, the actions of each turn, and how each episode ended."""

    seen: Demonstrations
    chunks: Float32[np.ndarray, "F C A"]
    episodes: Int64[
        np.ndarray, " E"
    ]  # their numbers in the dataset, ascending, as `seen.episode_ids` has them
    success: Bool[np.ndarray, " E"] | None
    """How each ended; None where the dataset does not say."""
    initial_states: Int64[np.ndarray, " E"]  # -1: not known

    def rows(self, episode: int) -> slice:
        """The frames of the episode with this number."""
        first, last = np.searchsorted(self.seen.episode_ids, [episode, episode + 1])
        return slice(int(first), int(last))

    def task_of(self, episode: int) -> int:
        """Its instruction, as an index into `seen.instructions`."""
        return int(self.seen.task_ids[self.rows(episode)][0])


def load_logged(
    folder: str | Path,
    chunk: int,
    *,
    action_size: int | None = None,
    camera: str = "",
    image_size: int = 0,
    image_fit: ImageFit | None = None,
    episodes_per_task: int = 0,
    outcome: Outcome = "all",
    normalised_robots: Collection[str] = NORMALISED_ROBOTS,
) -> LoggedEpisodes:
    """Read logged episodes whose turns have `chunk` actions; the other arguments are those of `load_demonstrations`.

    outcome: which episodes; UserError for other than all where the dataset does not say how they ended, or where none
    ended so. UserError for what `load_demonstrations` refuses, and for turns of another number of actions.
    """
    reader = LeRobotReader(folder)
    order = reader.frame_order()
    first = np.flatnonzero(np.append(True, order[1:] != order[:-1]))
    numbers, success = order[first], _success(reader, order)
    wanted = None if outcome == "all" else _of_outcome(reader, numbers, success, outcome)
    seen = load_demonstrations(
        folder, action_size=action_size, camera=camera, image_size=image_size, image_fit=image_fit,
        normalised_robots=normalised_robots, episodes_per_task=episodes_per_task, episodes=wanted,
    )  # fmt: skip
    kept = np.isin(order, seen.episode_ids)
    left = np.isin(numbers, seen.episode_ids)
    states = _column(reader, INITIAL_STATE, order, "iu")
    return LoggedEpisodes(
        seen,
        _chunks(reader, seen, kept, chunk),
        numbers[left],
        None if success is None else success[left],
        np.full(left.sum(), -1, np.int64)
        if states is None
        else states[first[left]].astype(np.int64),
    )


def _success(
    reader: LeRobotReader, order: Int64[np.ndarray, " F"]
) -> Bool[np.ndarray, " E"] | None:
    """What `next.success` says in the last frame of each episode; None without it."""
    values = _column(reader, SUCCESS, order, "b")
    return None if values is None else values[np.append(order[1:] != order[:-1], True)]


def _column(
    reader: LeRobotReader, name: str, order: Int64[np.ndarray, " F"], kinds: str
) -> np.ndarray | None:
    """A feature of one value a frame, of these kinds of numpy's; None where the dataset has none."""
    if name not in reader.features:
        return None
    feature = reader.feature(name)
    values = reader.finite_column(name).reshape(-1) if feature.numeric else np.zeros(0)
    if values.shape != order.shape or values.dtype.kind not in kinds:
        expected = "true or false" if kinds == "b" else "one whole number"
        found = Phrase(f"{feature.dtype} of shape {feature.shape}")
        raise fault(reader.folder, name, f"{expected} a frame", found, REMEDY)
    return values


def _of_outcome(
    reader: LeRobotReader,
    numbers: Int64[np.ndarray, " E"],
    success: Bool[np.ndarray, " E"] | None,
    outcome: Outcome,
) -> Int64[np.ndarray, " e"]:
    if success is None:
        raise UserError(
            f"{reader.folder} does not say how its episodes ended: expected the feature {SUCCESS!r}, true or false a "
            "frame, of which an episode's last counts"
        )
    chosen = numbers[success == (outcome == "success")]
    if not len(chosen):
        raise UserError(f"{reader.folder}: none of {len(numbers)} episodes is a {outcome}")
    return chosen


def _chunks(
    reader: LeRobotReader, seen: Demonstrations, kept: Bool[np.ndarray, " G"], chunk: int
) -> Float32[np.ndarray, "F C A"]:
    size = seen.actions.shape[1]
    if ACTION_CHUNK not in reader.features:
        return action_chunks(seen.actions, seen.episode_ids, chunk)
    stored = reader.finite_column(ACTION_CHUNK).reshape(len(kept), -1)
    if stored.dtype.kind != "f" or stored.shape[1] != chunk * size:
        raise UserError(
            f"{reader.folder}: expected turns of {chunk} actions of {size} numbers each, as the policy decides them, "
            f"got {stored.shape[1]} numbers in {ACTION_CHUNK!r}. Take the log of a policy with as long a turn"
        )
    return np.ascontiguousarray(stored[kept].reshape(-1, chunk, size), dtype=np.float32)
