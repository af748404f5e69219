"""In which order an update goes through its samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from vla_rl.runtime.seeding import generator

Parts = list[Int64[Tensor, "..."]]
"""Samples of one minibatch: a part for each shard of this process, which may be empty."""


@dataclass(frozen=True)
class Order:
    """The random order of one update: keyed, so that every shard's part is the same whoever draws it."""

    seed: int
    iteration: int
    purpose: str

    def of(self, samples: int, epoch: int, shard: int) -> Int64[Tensor, " samples"]:
        """A permutation of 0..samples - 1."""
        rng = generator(self.seed, "minibatches", self.purpose, self.iteration, epoch, shard)
        return torch.from_numpy(rng.permutation(samples))


def minibatches(
    shards: Int64[np.ndarray, " B"], own: range | None, epochs: int, size: int, order: Order
) -> Iterator[Parts]:
    """Every sample once per epoch, in a fresh order each time, in minibatches of about `size` samples.

    A minibatch takes about as large a share of every shard. What comes are the rows of the shards in `own`.

    Args:
        shards: Shard of each sample, of all processes.
        own: Shards of this process; None: all.
        epochs: How often to go through all samples.
        size: Samples in a minibatch of all processes together.
        order: The random order.
    """
    steps = max(1, len(shards) // size)
    if own is None:
        own = range(int(shards.max(initial=0)) + 1)
    rows = {shard: torch.from_numpy(np.flatnonzero(shards == shard)) for shard in own}
    for epoch in range(epochs):
        cut = [
            of_shard[order.of(len(of_shard), epoch, shard)].tensor_split(steps)
            for shard, of_shard in rows.items()
        ]
        for step in range(steps):
            yield [parts[step] for parts in cut]
