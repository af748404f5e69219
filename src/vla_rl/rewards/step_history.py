"""What a reward model with a history sees of a window: the steps so far of every running episode, across windows.

A step is what was seen before a turn, and the actions of that turn. The last steps of a window are kept for the next
one, environment by environment, and are part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from vla_rl.config import UserError
from vla_rl.distributed.world import World
from vla_rl.rewards.process.model import PastSteps
from vla_rl.types import Rollout


@dataclass(frozen=True)
class _Steps:
    """The last P steps of L environments, oldest first; of those, `count` belong to the running episode."""

    images: UInt8[np.ndarray, "P L H W 3"]
    actions: Float32[np.ndarray, "P L C A"]
    count: Int64[np.ndarray, " L"]
    episodes: Int64[np.ndarray, " L"]
    """Number of the running episode; -1: it has ended."""


@dataclass(frozen=True)
class SeenTurns:
    """M turns of a window and the moment after it, in L environments, each with its history."""

    images: UInt8[np.ndarray, "M1 L F H W 3"]
    past: PastSteps
    """Of all (M + 1) L moments, turn after turn; of shape (.., F - 1, 0, 0) where no actions were given."""

    def part(self, turns: slice) -> tuple[UInt8[np.ndarray, "B F H W 3"], PastSteps]:
        """Of these turns, as one batch, window-major."""
        envs = self.images.shape[1]
        rows = np.arange(len(self.images) * envs).reshape(-1, envs)[turns].reshape(-1)
        return self.images.reshape(-1, *self.images.shape[2:])[rows], self.past.select(rows)


class StepHistory:
    """The steps so far of every environment of this process."""

    def __init__(self, images: int) -> None:
        """`images`: that a moment shows, the present one included (F)."""
        self.steps = images - 1
        self._kept: _Steps | None = None
        self._saved: Mapping[str, Any] | None = (
            None  # of all environments, until it is known which are ours
        )

    def follow(self, rollout: Rollout, actions: Float32[np.ndarray, "M L C A"]) -> SeenTurns:
        """The moments of the next window; its last steps are kept."""
        kept = self._before(rollout, actions)
        images = np.concatenate([kept.images, rollout.images, rollout.next_images[None]])
        taken = np.concatenate([kept.actions, actions])
        count = _steps_so_far(kept, rollout)
        shown = np.minimum(count, self.steps)
        # the first image of an episode stands for those that would come before it
        back = np.minimum(np.arange(self.steps, -1, -1)[:, None], shown[:, None])
        rows = self.steps + np.arange(len(count))[:, None, None] - back  # (M + 1, F, L)
        envs, turns = np.arange(images.shape[1]), len(count) - 1
        there = np.arange(self.steps)[:, None] >= self.steps - shown[:, None]
        before = np.minimum(rows[:, :-1], len(taken) - 1)  # the last moment has no action yet
        past = np.where(there[..., None, None], taken[before, envs], np.float32(0)).swapaxes(1, 2)
        ended = rollout.ended[-1, rollout.own]
        self._kept = _Steps(
            images[turns : turns + self.steps].copy(),
            taken[turns:].copy(),
            shown[-1],
            np.where(ended, -1, rollout.episode_ids[-1, rollout.own]),
        )
        return SeenTurns(
            images[rows, envs].swapaxes(1, 2),
            PastSteps(past.reshape(-1, self.steps, *past.shape[3:]), shown.reshape(-1)),
        )

    def _before(self, rollout: Rollout, actions: Float32[np.ndarray, "M L C A"]) -> _Steps:
        envs = rollout.images.shape[1]
        if self._saved is not None:
            saved, self._saved = self._saved, None
            self._kept = self._own(saved, rollout, actions.shape[2:])
        if self._kept is not None:
            return self._kept
        return _Steps(
            np.zeros((self.steps, *rollout.images.shape[1:]), np.uint8),
            np.zeros((self.steps, *actions.shape[1:]), np.float32),
            np.zeros(envs, np.int64),
            np.full(envs, -1, np.int64),
        )

    def _own(
        self, saved: Mapping[str, Any], rollout: Rollout, action_shape: tuple[int, ...]
    ) -> _Steps:
        images, actions, count, episodes = (
            np.asarray(saved[name]) for name in ("images", "actions", "count", "episodes")
        )
        envs = rollout.rewards.shape[1]
        wanted = (self.steps, envs, *rollout.images.shape[2:]), (self.steps, envs, *action_shape)
        if (images.shape, actions.shape) != wanted:
            raise UserError(
                f"the checkpoint holds the reward model's history as images of shape {images.shape} and actions of "
                f"shape {actions.shape}, expected {wanted[0]} and {wanted[1]}: go on with the reward model and the "
                "environments that the run was started with"
            )
        own = rollout.own
        return _Steps(images[:, own], actions[:, own], count[own], episodes[own])

    def state_dict(self, world: World) -> dict[str, Any] | None:
        """The steps of all processes' environments, in their order; None before the first window. All ranks call it."""
        if self._saved is not None:  # loaded, and nothing played since
            return dict(self._saved)
        if self._kept is None:
            return None
        kept = self._kept
        parts = world.gather((kept.images, kept.actions, kept.count, kept.episodes))
        axes = {"images": 1, "actions": 1, "count": 0, "episodes": 0}
        return {
            name: np.concatenate([part[i] for part in parts], axis=axis)
            for i, (name, axis) in enumerate(axes.items())
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """None: of a run that kept no history; the running episodes then begin without one."""
        self._kept, self._saved = None, state


def _steps_so_far(kept: _Steps, rollout: Rollout) -> Int64[np.ndarray, "M1 L"]:
    """Steps of the episode before each turn, and before the moment after the window."""
    numbers = rollout.episode_ids[:, rollout.own]
    ended = rollout.ended[:, rollout.own]
    count = np.zeros((len(numbers) + 1, numbers.shape[1]), np.int64)
    goes_on = (kept.episodes >= 0) & (kept.episodes == numbers[0])
    count[0] = np.where(goes_on, kept.count, 0)
    for turn in range(1, len(count)):
        same = ~ended[turn - 1]
        if turn < len(numbers):
            same &= numbers[turn] == numbers[turn - 1]
        count[turn] = np.where(same, count[turn - 1] + 1, 0)
    return count
