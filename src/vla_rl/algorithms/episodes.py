"""Whole episodes of an iteration as what is compared: how each ended, what it was worth, which turns are its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from vla_rl.algorithms.advantages import Batch, flattened
from vla_rl.rollout.buffer import FinishedEpisode
from vla_rl.types import Rollout


@dataclass(frozen=True)
class Episodes:
    """E episodes that came to their end, in the order of their numbers."""

    numbers: Int64[np.ndarray, " E"]  # as in `Rollout.episode_ids`
    groups: Int64[np.ndarray, " E"]  # as in `Rollout.group_ids`
    success: Bool[np.ndarray, " E"]
    turns: Int64[np.ndarray, " E"]
    sparse: Float64[np.ndarray, " E"]  # sums over their turns: of the simulator's reward,
    dense: Float64[np.ndarray, " E"]  # of the dense reward,
    log_likelihood: Float64[np.ndarray, " E"]  # and of the sampler's log-probs

    def __len__(self) -> int:
        return len(self.numbers)

    def of(self, kept: Bool[np.ndarray, " E"]) -> Episodes:
        """Some of them."""
        return Episodes(*(getattr(self, name)[kept] for name in self.__dataclass_fields__))


def episodes_of(
    rollout: Rollout,
    finished: Sequence[FinishedEpisode],
    dense_rewards: Float32[np.ndarray, "M N"],
) -> Episodes:
    """The episodes that ended in a window in which every one did."""
    ended = sorted(finished, key=lambda episode: episode.number)
    numbers = np.array([episode.number for episode in ended], np.int64)
    turns, envs = np.nonzero(rollout.valid)
    at = np.searchsorted(numbers, rollout.episode_ids[turns, envs])

    def sums(of_turns: Float32[np.ndarray, "M N"]) -> Float64[np.ndarray, " E"]:
        return np.bincount(at, of_turns[turns, envs].astype(np.float64), len(numbers))

    return Episodes(
        numbers=numbers,
        groups=np.array([episode.group for episode in ended], np.int64),
        success=np.array([episode.success for episode in ended], bool),
        turns=np.bincount(at, minlength=len(numbers)),
        sparse=sums(rollout.rewards),
        dense=sums(dense_rewards),
        log_likelihood=sums(rollout.log_probs.sum(-1)),
    )


def turns_of(rollout: Rollout, episodes: Episodes, advantages: Float64[np.ndarray, " E"]) -> Batch:
    """The turns of some episodes alone, each with its episode's advantage."""
    kept = rollout.valid & np.isin(rollout.episode_ids, episodes.numbers)
    of_turns = np.zeros(kept.shape, np.float32)
    of_turns[kept] = advantages[np.searchsorted(episodes.numbers, rollout.episode_ids[kept])]
    nothing = torch.zeros(kept.shape)
    return flattened(replace(rollout, valid=kept), torch.from_numpy(of_turns), nothing)
