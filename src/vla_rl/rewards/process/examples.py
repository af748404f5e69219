"""From labelled trajectories to what a reward model learns from: one row a turn.

positives    turns that lead to a key frame
negatives    the other turns, failures among them
mismatched   some turns under another task's instruction, all negative: see mismatched.py
unknown      turns whose label says neither; they are scored but never learned from
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from vla_rl.config import LabelConfig, UserError
from vla_rl.rewards.process.labels import Labels, label
from vla_rl.rewards.process.model import PastSteps, history_rows
from vla_rl.rewards.process.robot_signals import robot_signals
from vla_rl.rewards.trajectories import Trajectory

Rows = Int64[np.ndarray, " R"]


@dataclass(frozen=True)
class Examples:
    """D turns of E episodes, episode after episode."""

    images: UInt8[np.ndarray, "D H W 3"]
    sequence: Int64[np.ndarray, "D F"]  # rows of the images that each turn sees, oldest first
    steps: Int64[np.ndarray, " D"]  # earlier images of the sequence that the episode really has
    actions: Float32[np.ndarray, "D C A"]  # the first one alone where the reward model reads none
    positive: Bool[np.ndarray, " D"]
    known: Bool[np.ndarray, " D"]
    final: Bool[np.ndarray, " D"]  # at the end of a success, see `Labels.final`
    progress: Float32[np.ndarray, " D"]
    episode: Int64[np.ndarray, " D"]  # index into the fields below
    trajectories: tuple[Trajectory, ...]  # E
    instructions: tuple[str, ...]  # E
    success: Bool[np.ndarray, " E"]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def action_shape(self) -> tuple[int, int]:
        return self.actions.shape[1], self.actions.shape[2]

    def images_seen(self, rows: Rows) -> UInt8[np.ndarray, "R F H W 3"]:
        """What the reward model sees at these turns."""
        return self.images[self.sequence[rows]]

    def past_of(self, rows: Rows) -> PastSteps:
        """The steps between the images that are seen at these turns: what was done at each of the earlier ones."""
        earlier, count = self.sequence[rows, :-1], self.steps[rows]
        there = np.arange(earlier.shape[1]) >= earlier.shape[1] - count[:, None]
        taken = self.actions[earlier] * there[..., None, None]
        return PastSteps(taken.astype(np.float32), count)

    def instructions_of(self, rows: Rows) -> list[str]:
        return [self.instructions[i] for i in self.episode[rows].tolist()]

    def rows_of(self, episodes: Sequence[int] | Rows) -> Int64[np.ndarray, " rows"]:
        """All turns of these episodes."""
        return np.flatnonzero(np.isin(self.episode, np.asarray(episodes, dtype=np.int64)))


def build_examples(
    trajectories: Sequence[Trajectory],
    labels: LabelConfig,
    history: int = 1,
    reads_actions: bool = False,
) -> Examples:
    """Label the trajectories and lay them out.

    Images of a history lie as far apart in time in every trajectory: as far as in the one with the longest turns.
    Raises UserError where there are none, or they differ in image size or, if actions are read, in their actions.
    """
    if not trajectories:
        raise UserError("there is no episode to learn from or to measure on: check the datasets")
    _require_alike(trajectories, reads_actions)
    found = [label(t, labels, robot_signals(t.robot)) for t in trajectories]
    longest = max(t.turn_seconds for t in trajectories)
    starts = np.cumsum([0, *(len(t) for t in trajectories)])
    strides = [max(1, round(longest / t.turn_seconds)) for t in trajectories]
    sequence = [
        start + history_rows(len(t), history, stride)
        for start, t, stride in zip(starts[:-1], trajectories, strides, strict=True)
    ]
    steps = [
        np.minimum(np.arange(len(t)) // stride, history - 1)
        for t, stride in zip(trajectories, strides, strict=True)
    ]
    return Examples(
        images=np.concatenate([t.images for t in trajectories]),
        sequence=np.concatenate(sequence),
        steps=np.concatenate(steps).astype(np.int64),
        actions=np.concatenate(
            [t.actions if reads_actions else t.actions[:, :1] for t in trajectories]
        ),
        positive=_joined(found, "positive"),
        known=_joined(found, "known"),
        final=np.concatenate(
            [g.final(t.success) for g, t in zip(found, trajectories, strict=True)]
        ),
        progress=_joined(found, "progress"),
        episode=np.repeat(np.arange(len(trajectories)), [len(t) for t in trajectories]),
        trajectories=tuple(trajectories),
        instructions=tuple(t.instruction for t in trajectories),
        success=np.array([t.success for t in trajectories], dtype=bool),
    )


def _joined(found: Sequence[Labels], name: str) -> np.ndarray:
    return np.concatenate([getattr(labels, name) for labels in found])


def _require_alike(trajectories: Sequence[Trajectory], reads_actions: bool) -> None:
    first = trajectories[0]
    for other in trajectories:
        if other.images.shape[1:] != first.images.shape[1:]:
            raise UserError(
                f"expected images of one size, got {first.images.shape[1:3]} ({first.name}) and "
                f"{other.images.shape[1:3]} ({other.name}): set reward.image_size"
            )
        start = 1 if reads_actions else 2  # the chunk matters only to a reward model that reads it
        if other.actions.shape[start:] != first.actions.shape[start:]:
            raise UserError(
                f"expected actions of one shape (chunk, size), got {first.actions.shape[1:]} ({first.name}) and "
                f"{other.actions.shape[1:]} ({other.name}): set reward.action_chunk to the policy's, or take datasets "
                "of one robot"
            )


def require_both_classes(positive: Bool[np.ndarray, " D"], what: str) -> None:
    """Raise UserError unless there are positives and negatives."""
    count = int(positive.sum())
    if 0 < count < len(positive):
        return
    only = "positive" if count else "negative"
    if not len(positive):
        raise UserError(f"{what}: expected labelled turns, got none. Check the label settings")
    raise UserError(
        f"{what}: expected positive and negative turns, all {len(positive)} are {only}. "
        + (
            "Add the policy's own play with its failures (`vla-rl reward collect`), or a shorter labels.window"
            if count
            else "Add demonstrations or other successes, or look at the labels (`vla-rl reward label`)"
        )
    )
