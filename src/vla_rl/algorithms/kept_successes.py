"""Successes kept: the policy's own successful episodes of many windows, to be imitated where they are rare.

One success in a hundred episodes is one in every other window, and the imitation of a window's own successes has
forgotten it by the next. Here each task keeps its last ones (Oh et al. 2018, self-imitation learning,
arXiv:1806.05635, with the success rate in the place of the value).

    loss = - c sum_j m_j sum_e q_e mean_t log pi(a_t | o_t)          tasks j, their episodes e, an episode's turns t

    q_e ~ 2^(-age_e / h) of task j's episodes, adding up to 1        age in windows, h = `kept_half_life`
    m_j = (1 - s_j) 2^(-age / h) / J                                 age of its newest; J tasks were played so far

with s_j the task's success so far, older windows halved likewise. So a task weighs the less the more often it succeeds,
and the longer ago that was; no task weighs more than in a window all of whose episodes succeeded.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from vla_rl.algorithms.advantages import Batch
from vla_rl.algorithms.gradients import Gradients
from vla_rl.algorithms.minibatches import Order, Parts, minibatches
from vla_rl.config import PPOConfig
from vla_rl.types import Observation

SHARE = 4
"""A step imitates about one kept turn for so many of its minibatch."""


@dataclass(frozen=True)
class KeptEpisode:
    """A successful episode, or the part of it that lies in the window in which it ended."""

    task: int
    shard: int
    iteration: int
    tokens: Int64[Tensor, "T K"]
    seen: Observation | None  # None with processes that did not play it


@dataclass(frozen=True)
class KeptTurns:
    """The turns of all kept episodes of all processes, with the weight of each in the mean over them."""

    observation: Observation | None  # of this process's turns alone; None: it has none
    places: Int64[np.ndarray, " n"]
    """Where a turn's observation lies in `observation`; -1: with another process."""
    tokens: Int64[Tensor, "n K"]
    weights: Float[Tensor, " n"]
    shards: Int64[np.ndarray, " n"]

    def minibatches(self, own: range | None, minibatch: int, order: Order) -> Iterator[Parts]:
        """All turns, again and again without an end, in minibatches of about a quarter of `minibatch`."""
        return minibatches(self.shards, own, sys.maxsize, max(1, minibatch // SHARE), order)

    def observe(self, rows: Int64[Tensor, " b"]) -> Observation:
        """What was seen in some of this process's turns."""
        assert self.observation is not None, "rows are of this process's turns"
        return self.observation.select(self.places[rows.numpy()])


class KeptSuccesses:
    """At most `kept_successes` episodes of each task, the last ones; the same on all processes but for the images."""

    def __init__(self, config: PPOConfig, gradients: Gradients) -> None:
        self.config, self.gradients = config, gradients
        self.episodes: dict[int, deque[KeptEpisode]] = {}  # by task
        self.won: Float64[np.ndarray, " T"] = np.zeros(0)
        self.lost: Float64[np.ndarray, " T"] = np.zeros(0)
        self.iteration = 0

    def add(self, batch: Batch, iteration: int) -> None:
        """Keep what succeeded in a window, and note how often that was."""
        if batch.signal is None or batch.tasks is None or batch.episodes is None:
            raise ValueError("successes are kept of batches that know their tasks and episodes")
        self.iteration, signal = iteration, batch.signal
        if not len(self.won):
            self.won, self.lost = np.zeros(len(signal.won)), np.zeros(len(signal.lost))
        faded = 2.0 ** (-1.0 / self.config.kept_half_life)
        self.won = faded * self.won + signal.won
        self.lost = faded * self.lost + signal.lost
        succeeded = batch.succeeded.numpy()
        own = range(batch.first, batch.first + len(batch.observation))
        for number in np.unique(batch.episodes[succeeded]):
            rows = np.flatnonzero(succeeded & (batch.episodes == number))
            task, shard = int(batch.tasks[rows[0]]), int(batch.shards[rows[0]])
            seen = batch.observe(torch.from_numpy(rows)) if int(rows[0]) in own else None
            self._of(task).append(KeptEpisode(task, shard, iteration, batch.tokens[rows], seen))

    def _of(self, task: int) -> deque[KeptEpisode]:
        return self.episodes.setdefault(task, deque(maxlen=self.config.kept_successes))

    def turns(self) -> KeptTurns | None:
        """All that is kept, weighted; None where nothing is."""
        episodes = self._in_order()
        if not episodes:
            return None
        lengths = [len(episode.tokens) for episode in episodes]
        weights = np.concatenate(
            [np.full(n, w / n) for n, w in zip(lengths, self._weights(), strict=True)]
        )
        places, parts, before = [], [], 0
        for episode, length in zip(episodes, lengths, strict=True):
            if episode.seen is None:
                places.append(np.full(length, -1))
                continue
            places.append(np.arange(before, before + length))
            parts.append(episode.seen)
            before += length
        return KeptTurns(
            Observation.concatenate(parts) if parts else None,
            np.concatenate(places),
            torch.cat([episode.tokens for episode in episodes]),
            torch.from_numpy(weights * len(weights)).float(),
            np.repeat([episode.shard for episode in episodes], lengths),
        )  # fmt: skip

    def _in_order(self) -> list[KeptEpisode]:
        return [episode for task in sorted(self.episodes) for episode in self.episodes[task]]

    def _weights(self) -> list[float]:
        """m_j q_e of each episode, in their order."""
        total = self.won + self.lost
        played = max(1, int((total > 0).sum()))
        weights: list[float] = []
        for task in sorted(self.episodes):
            ages = np.array([self.iteration - e.iteration for e in self.episodes[task]])
            faded = 2.0 ** (-ages / self.config.kept_half_life)
            failing = self.lost[task] / max(total[task], 1e-9)
            weights += (failing / played * faded.max(initial=0.0) * faded / faded.sum()).tolist()
        return weights

    def metrics(self) -> dict[str, float]:
        """`kept/episodes`, and the sum of what tasks weigh, at most 1."""
        return {
            "kept/episodes": float(len(self._in_order())),
            "kept/weight": float(sum(self._weights())),
        }

    def state_dict(self) -> dict[str, Any]:
        """What is kept by all processes, as JSON values and arrays."""
        episodes = self._in_order()
        parts = self.gradients.world.gather([e.seen for e in episodes])
        seen = [next(one for one in of_ranks if one) for of_ranks in zip(*parts, strict=True)]
        state: dict[str, Any] = {
            "iteration": self.iteration,
            "won": self.won.tolist(),
            "lost": self.lost.tolist(),
            "episodes": [[e.task, e.shard, e.iteration, len(e.tokens)] for e in episodes],
        }
        if episodes:
            every = Observation.concatenate(seen)
            state |= {
                "tokens": torch.cat([e.tokens for e in episodes]),
                "images": every.images,
                "instructions": list(every.instructions),
                "proprio": every.proprio,
                "time_fraction": every.time_fraction,
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.iteration = int(state["iteration"])
        self.won, self.lost = np.array(state["won"], float), np.array(state["lost"], float)
        self.episodes.clear()
        if not state["episodes"]:
            return
        every = Observation(
            state["images"], tuple(state["instructions"]), state["proprio"], state["time_fraction"]
        )
        own, before = self.gradients.own_shards, 0
        for task, shard, iteration, length in state["episodes"]:
            rows = np.arange(before, before + length)
            before += length
            seen = every.select(rows) if own is None or shard in own else None
            kept = KeptEpisode(
                task, shard, iteration, state["tokens"][torch.from_numpy(rows)], seen
            )
            self._of(task).append(kept)
