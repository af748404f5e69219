"""From labelled trajectories to what a judge learns from: one row a decision, split by whole episodes.

positives    decisions that lead to a key frame
negatives    the other decisions, failures among them
mismatched   any decision under another task's instruction: negative, whatever the robot does
unknown      decisions whose label says neither; they are judged but never learned from
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from vla_rl.config import LabelConfig, UserError, nearest
from vla_rl.rewards.judge import history_rows
from vla_rl.rewards.labels import Labels, label
from vla_rl.rewards.signals import robot_signals
from vla_rl.rewards.trajectories import Trajectory

Rows = Int64[np.ndarray, " _"]


@dataclass(frozen=True)
class Examples:
    """D decisions of E episodes, episode after episode."""

    images: UInt8[np.ndarray, "D H W 3"]
    sequence: Int64[np.ndarray, "D F"]  # rows of the pictures that each decision sees, oldest first
    actions: Float32[np.ndarray, "D C A"]  # the first one alone where the judge sees none
    positive: Bool[np.ndarray, " D"]
    known: Bool[np.ndarray, " D"]
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

    def pictures(self, rows: Rows) -> UInt8[np.ndarray, "R F H W 3"]:
        """What the judge sees at these decisions."""
        return self.images[self.sequence[rows]]

    def instructions_of(self, rows: Rows) -> list[str]:
        return [self.instructions[i] for i in self.episode[rows].tolist()]

    def rows_of(self, episodes: Sequence[int] | Rows) -> Rows:
        """All decisions of these episodes."""
        return np.flatnonzero(np.isin(self.episode, np.asarray(episodes, dtype=np.int64)))


def build_examples(
    trajectories: Sequence[Trajectory],
    labels: LabelConfig,
    history: int = 1,
    sees_actions: bool = False,
) -> Examples:
    """Label the trajectories and lay them out.

    Pictures of a history lie as far apart in time in every trajectory: as far as in the one with the longest decisions.
    Raises UserError where there are none, or they differ in picture size or, if actions are seen, in their actions.
    """
    if not trajectories:
        raise UserError("there is no episode to learn from or to measure on: check the datasets")
    _require_alike(trajectories, sees_actions)
    found = [label(t, labels, robot_signals(t.robot)) for t in trajectories]
    longest = max(t.decision_seconds for t in trajectories)
    starts = np.cumsum([0, *(len(t) for t in trajectories)])
    sequence = [
        start + history_rows(len(t), history, max(1, round(longest / t.decision_seconds)))
        for start, t in zip(starts[:-1], trajectories, strict=True)
    ]
    return Examples(
        images=np.concatenate([t.images for t in trajectories]),
        sequence=np.concatenate(sequence),
        actions=np.concatenate(
            [t.actions if sees_actions else t.actions[:, :1] for t in trajectories]
        ),
        positive=_joined(found, "positive"),
        known=_joined(found, "known"),
        progress=_joined(found, "progress"),
        episode=np.repeat(np.arange(len(trajectories)), [len(t) for t in trajectories]),
        trajectories=tuple(trajectories),
        instructions=tuple(t.instruction for t in trajectories),
        success=np.array([t.success for t in trajectories], dtype=bool),
    )


def _joined(found: Sequence[Labels], name: str) -> np.ndarray:
    return np.concatenate([getattr(labels, name) for labels in found])


def _require_alike(trajectories: Sequence[Trajectory], sees_actions: bool) -> None:
    first = trajectories[0]
    for other in trajectories:
        if other.images.shape[1:] != first.images.shape[1:]:
            raise UserError(
                f"expected pictures of one size, got {first.images.shape[1:3]} ({first.name}) and "
                f"{other.images.shape[1:3]} ({other.name}): set reward.image_size"
            )
        start = 1 if sees_actions else 2  # the chunk matters only to a judge that sees it
        if other.actions.shape[start:] != first.actions.shape[start:]:
            raise UserError(
                f"expected actions of one shape (chunk, size), got {first.actions.shape[1:]} ({first.name}) and "
                f"{other.actions.shape[1:]} ({other.name}): set reward.action_chunk to the policy's, or take datasets "
                "of one robot"
            )


@dataclass(frozen=True)
class Split:
    """Which episodes are learned from, which measure, and which belong to tasks that are never learned from."""

    training: Rows
    validation: Rows
    held_out: Rows


def split_episodes(
    trajectories: Sequence[Trajectory],
    fraction: float,
    held_out_tasks: Sequence[str],
    rng: np.random.Generator,
) -> Split:
    """By whole episodes, for every task alike; all episodes of one initial state on one side.

    The first picture of a demonstration and of the policy's tries is the same where they start alike, so apart they
    would give the answer away. Where the initial states are not known, each episode is its own. Of a task with n
    initial states round(fraction n) are held out, at least one where there are two and the fraction is positive, never
    all. Raises UserError for held-out tasks that do not exist, or when nothing would be left.
    """
    names = [(t.task, t.instruction) for t in trajectories]
    _require_tasks(names, held_out_tasks)
    apart = np.array([bool({*pair} & {*held_out_tasks}) for pair in names])
    validation = np.zeros(len(trajectories), dtype=bool)
    for instruction in sorted({t.instruction for t in trajectories}):
        own = [
            i for i, t in enumerate(trajectories) if t.instruction == instruction and not apart[i]
        ]
        known = {trajectories[i].initial_state for i in own}
        single = len(known) < 2 or -1 in known
        group = {i: i if single else trajectories[i].initial_state for i in own}
        groups = rng.permutation(sorted(set(group.values())))
        count = round(fraction * len(groups))
        if fraction > 0 and len(groups) > 1:
            count = min(max(count, 1), len(groups) - 1)
        chosen = {int(g) for g in groups[:count]}
        validation[[i for i in own if group[i] in chosen]] = True
    training = ~validation & ~apart
    if not training.any():
        raise UserError("all tasks are held out, nothing is left to learn from: hold out fewer")
    return Split(*(np.flatnonzero(mask) for mask in (training, validation & ~apart, apart)))


def _require_tasks(names: Sequence[tuple[str, str]], wanted: Sequence[str]) -> None:
    known = sorted({name for pair in names for name in pair})
    for task in wanted:
        if task not in known:
            raise UserError(
                f"reward.held_out_tasks: there is no task {task!r}.{nearest(task, known)}"
            )


def other_instructions(
    own: Sequence[str], choices: Sequence[str], rng: np.random.Generator
) -> list[str]:
    """For each instruction another one, drawn evenly from the rest of `choices`.

    Raises UserError if there is only one: nothing can be mismatched then.
    """
    distinct = sorted(set(choices))
    if len(distinct) < 2:
        raise UserError(
            f"there is only one instruction, {distinct[0]!r}, so none can be mismatched: set reward.mismatched_share "
            "to 0, or add another task"
        )
    place = {text: i for i, text in enumerate(distinct)}
    steps = rng.integers(1, len(distinct), size=len(own))
    return [
        distinct[(place[text] + int(step)) % len(distinct)]
        if text in place
        else distinct[int(step)]
        for text, step in zip(own, steps, strict=True)
    ]


def require_both_classes(positive: Bool[np.ndarray, " D"], what: str) -> None:
    """Raise UserError unless there are positives and negatives."""
    count = int(positive.sum())
    if 0 < count < len(positive):
        return
    only = "positive" if count else "negative"
    if not len(positive):
        raise UserError(f"{what}: expected labelled decisions, got none. Check the label settings")
    raise UserError(
        f"{what}: expected positive and negative decisions, all {len(positive)} are {only}. "
        + (
            "Add the policy's own play with its failures (`vla-rl reward collect`), or a shorter labels.window"
            if count
            else "Add demonstrations or other successes, or look at the labels (`vla-rl reward label`)"
        )
    )
