"""A policy's own successes beside demonstrations: what expert iteration learns from.

vla-rl reward collect runs/sft --out runs/play
vla-rl sft --dataset runs/demos --successes runs/play --out runs/sft-2

an episode that ended in success -> its turns, each with the actions that the policy chose there
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64

from vla_rl.config import UserError
from vla_rl.data.demonstrations import Demonstrations, action_chunks, load_demonstrations
from vla_rl.data.lerobot import LeRobotReader
from vla_rl.runtime.external import Phrase, fault

ACTION_CHUNK = "action_chunk"
SUCCESS = "next.success"
SLACK = 1e-4
"""By how much an action may leave the demonstrations' range: rounding."""
REMEDY = "Give a folder that `vla-rl reward collect` wrote."


@dataclass(frozen=True)
class Lessons:
    """Frames to learn from, and for each the actions to play there."""

    seen: Demonstrations
    chunks: Float32[np.ndarray, "F C A"]


def refuse_play(folder: str) -> None:
    """Raise UserError where `folder` holds a policy's play: its failures would be taught, and its frames are turns."""
    if ACTION_CHUNK in LeRobotReader(folder).features:
        raise UserError(
            f"{folder}: expected demonstrations, got a policy's own play, failures among it. Give it as --successes, "
            "beside the demonstrations in --dataset"
        )


def with_successes(demos: Demonstrations, folders: Sequence[str], chunk: int) -> Lessons:
    """Every frame of `demos` with the `chunk` actions from it on, then every turn of the successes in `folders`.

    Raises UserError for a folder that holds no success, for play of another robot, picture size or chunk, and for what
    `load_demonstrations` refuses.
    """
    found = Lessons(demos, action_chunks(demos.actions, demos.episode_ids, chunk))
    for folder in folders:
        found = _joined(found, _load_successes(folder, demos, chunk), folder)
    return found


def _load_successes(folder: str, demos: Demonstrations, chunk: int) -> Lessons:
    reader = LeRobotReader(folder)
    episode_ids = reader.frame_order()
    succeeded = _successful_episodes(reader, episode_ids)
    if not len(succeeded):
        raise UserError(
            f"{folder}: expected episodes that succeeded, and none of {len(reader.episodes)} did. Play more of them, "
            "at another temperature, or leave --successes out"
        )
    seen = load_demonstrations(
        folder,
        action_size=demos.actions.shape[1],
        image_size=demos.image_size,
        image_fit=demos.image_fit,
        episodes=succeeded,
    )
    kept = np.isin(episode_ids, succeeded)
    return Lessons(seen, _chunks_of_turns(reader, kept, chunk, demos.actions.shape[1]))


def _successful_episodes(
    reader: LeRobotReader, episode_ids: Int64[np.ndarray, " F"]
) -> Int64[np.ndarray, " E"]:
    """The episodes whose last frame says success."""
    reader.feature(SUCCESS)
    success = reader.finite_column(SUCCESS).reshape(-1)
    if success.shape != episode_ids.shape or success.dtype != np.bool_:
        raise fault(
            reader.folder, SUCCESS, "true or false a frame", Phrase(str(success.dtype)), REMEDY
        )
    last = np.append(episode_ids[1:] != episode_ids[:-1], True)
    return episode_ids[last & success]


def _chunks_of_turns(
    reader: LeRobotReader, kept: np.ndarray, chunk: int, size: int
) -> Float32[np.ndarray, "F C A"]:
    """The actions of every kept turn, as the policy chose them."""
    name = ACTION_CHUNK if ACTION_CHUNK in reader.features else "action"
    stored = reader.finite_column(name).reshape(len(kept), -1)
    if stored.dtype.kind != "f" or stored.shape[1] != chunk * size:
        raise UserError(
            f"{reader.folder}: expected turns of {chunk} actions of {size} numbers each, as --action-chunk says, got "
            f"{stored.shape[1]} numbers in {name!r}. Take play of a policy that decides {chunk} actions a turn"
        )
    return np.ascontiguousarray(stored[kept].reshape(-1, chunk, size), dtype=np.float32)


def _joined(first: Lessons, second: Lessons, folder: str) -> Lessons:
    """Both, the second's episodes and instructions numbered on from the first's."""
    one, two = first.seen, second.seen
    if one.proprio.shape[1] != two.proprio.shape[1]:
        raise UserError(
            f"{folder}: expected proprioception of {one.proprio.shape[1]} numbers, as the demonstrations have, got "
            f"{two.proprio.shape[1]}. Take play of the same robot"
        )
    strange = (two.actions < one.action_low - SLACK) | (two.actions > one.action_high + SLACK)
    if strange.any(axis=1).mean() > 0.01:
        raise UserError(
            f"{folder}: {strange.any(axis=1).mean():.0%} of its actions lie outside what the demonstrations' span "
            f"({one.action_low.min():.3g} to {one.action_high.max():.3g}). Take play of the same robot, by a policy "
            "that was fine-tuned on these demonstrations"
        )
    instructions = list(dict.fromkeys([*one.instructions, *two.instructions]))
    renumbered = np.array([instructions.index(text) for text in two.instructions], dtype=np.int64)
    joined = replace(
        one,
        images=np.concatenate([one.images, two.images]),
        proprio=np.concatenate([one.proprio, two.proprio]),
        actions=np.concatenate([one.actions, two.actions]),
        episode_ids=np.concatenate([one.episode_ids, two.episode_ids + one.episode_ids[-1] + 1]),
        task_ids=np.concatenate([one.task_ids, renumbered[two.task_ids]]),
        instructions=tuple(instructions),
    )
    return Lessons(joined, np.concatenate([first.chunks, second.chunks]))
