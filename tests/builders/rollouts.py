"""Windows of play, written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from vla_rl.types import Rollout


def window(turns: int, envs: int = 1, **changes: Any) -> Rollout:
    """A rollout of zeros, of one task with two tokens a turn, with the given arrays (M, N, ...) put in."""
    shape = (turns, envs)
    zeros, no = np.zeros(shape, np.float32), np.zeros(shape, bool)
    rollout = Rollout(
        images=np.zeros((*shape, 4, 4, 3), np.uint8),
        task_ids=np.zeros(shape, np.int64),
        tasks=("task",),
        instructions=("do it",),
        initial_states=np.zeros(shape, np.int64),
        episode_ids=np.zeros(shape, np.int64),
        group_ids=np.zeros(shape, np.int64),
        proprio=np.zeros((*shape, 4), np.float32),
        time_fraction=zeros,
        tokens=np.arange(turns * envs * 2).reshape(*shape, 2),
        log_probs=np.zeros((*shape, 2), np.float32),
        values=zeros,
        rewards=zeros,
        terminated=no,
        truncated=no,
        final_values=zeros,
        next_values=np.zeros(envs, np.float32),
        next_images=np.zeros((envs, 4, 4, 3), np.uint8),
        succeeded=no,
        valid=~no,
        temperature=1.0,
    )
    return replace(rollout, **changes)


def column(*numbers: float) -> np.ndarray:
    """(M, 1): the numbers of one environment, a row for each turn."""
    return np.array(numbers, np.float32)[:, None]


def flags(*numbers: int) -> np.ndarray:
    """(M, 1) of the same for yes and no."""
    return np.array(numbers, bool)[:, None]
