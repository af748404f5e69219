"""In which order an update goes through its samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor

from vla_rl.distributed.world import SingleProcess, World


def minibatches(
    total: int,
    epochs: int,
    size: int,
    order: torch.Generator,
    world: World = SingleProcess(),
) -> Iterator[Int64[Tensor, " b"]]:
    """Every sample once per epoch, in a fresh order each time, in parts of nearly equal size.

    Every process brings `total` samples of its own, and a minibatch of `size` is shared among all. They give equally
    many parts, of which one may be empty: a step is taken by all of them or by none.
    """
    totals = world.gather(total)
    parts = max(1, sum(totals) // size)
    # torch.chunk may give fewer parts than asked for
    steps = max(len(torch.arange(own).chunk(parts)) for own in totals)
    for _ in range(epochs):
        rows = torch.randperm(total, generator=order).chunk(parts)
        yield from rows
        yield from [torch.zeros(0, dtype=torch.int64)] * (steps - len(rows))
