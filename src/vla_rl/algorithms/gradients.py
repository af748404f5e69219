"""Gradients of a minibatch on several CPU cores and in several processes.

torch's own threads split every operation and wait for the slowest core after each: with anything else running (a
simulator, a browser) that is up to fifty times slower than one thread. Splitting the samples instead has one meeting
point per minibatch.

The samples come in parts, one for each shard. The parts' gradients are added up along one fixed binary tree, whichever
thread of whichever process (`World`) computed them, so the result does not depend on how many there are. Every process
gets the same gradient and the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vla_rl.distributed.shards import Shards, in_order, tree_fold, tree_nodes
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.runtime.cpus import available_cpus

LossOfRows = Callable[[Int64[Tensor, " b"]], tuple[Float[Tensor, ""], dict[str, float]]]
"""Mean loss over some samples, and named numbers about them."""
Grads = list[Tensor | None]
"""A gradient for each parameter; None where the loss does not depend on it."""


class ThreadedGradients:
    """Puts the gradient of a mean loss into `.grad`, computed in `threads` threads and in micro-batches.

    `threads` 0 takes one per CPU core; on a GPU there is always one.
    """

    def __init__(
        self,
        threads: int = 0,
        micro_batch: int = 0,
        device: torch.device | None = None,
        world: World = SingleProcess(),
        shards: Shards | None = None,
    ) -> None:
        """`shards`: whose parts this process brings to `backward`; None: it brings all of them."""
        on_gpu = device is not None and device.type != "cpu"
        self.threads = 1 if on_gpu else threads or available_cpus()
        self.micro_batch, self.world, self.shards = micro_batch, world, shards
        self._pool = ThreadPoolExecutor(self.threads, "learner") if self.threads > 1 else None

    @property
    def own_shards(self) -> range | None:
        """The shards whose parts this process brings; None: all that there are."""
        return self.shards.own if self.shards else None

    def backward(
        self,
        loss: LossOfRows,
        parts: Sequence[Int64[Tensor, ...]],
        parameters: Sequence[nn.Parameter],
    ) -> dict[str, float]:
        """Set `.grad` of `parameters` to the gradient of the mean loss over all samples; returns the numbers' means.

        parts: the samples of each of this process's shards, in order; some may be empty. Means are over the samples of
        all processes.
        """
        total = sum(self.world.gather(sum(map(len, parts))))

        def of_part(part: Int64[Tensor, " s"]) -> tuple[Grads, Tally]:
            return self._of_part(loss, part, total, parameters)

        compute = self._pool.map if self._pool else map
        shards = self.shards or Shards(len(parts), len(parts))
        tallies: list[Tally] = []
        sums: dict[tuple[int, int], Grads] = {}
        results = iter(compute(of_part, parts))

        def leaf(node: tuple[int, int]) -> Grads | None:
            if node[1] - node[0] > 1:
                return None
            grads, tally = next(results)  # leaves are asked for in their order
            tallies.append(tally)
            return grads

        for node in tree_nodes(0, shards.count, shards.own):
            sums[node] = tree_fold(*node, leaf, _add)
        grads = self._over_ranks(sums, shards, parameters)
        for parameter, grad in zip(parameters, grads, strict=True):
            # one order in memory everywhere: a norm is rounded as its numbers lie, and convolutions turn theirs
            parameter.grad = None if grad is None else grad.contiguous()
        tally = Tally()
        for one in in_order(self.world.gather(tallies)):
            tally.merge(one)
        return tally.means()

    def _over_ranks(
        self,
        sums: dict[tuple[int, int], Grads],
        shards: Shards,
        parameters: Sequence[nn.Parameter],
    ) -> Grads:
        """The whole tree's sum; None where no rank has a gradient, so that the optimizer leaves the parameter alone."""
        whole = (0, shards.count)
        if whole in sums:
            return sums[whole]
        mine = list(sums.values())
        owned = self.world.gather(
            [any(g[i] is not None for g in mine) for i in range(len(parameters))]
        )
        used = [any(flags) for flags in zip(*owned, strict=True)]
        wanted = [p for p, is_used in zip(parameters, used, strict=True) if is_used]
        nodes = [tree_nodes(*whole, shards.shards_of(rank)) for rank in range(shards.size)]
        known: dict[tuple[int, int], Tensor] = {}
        for turn in range(max(map(len, nodes))):
            given = mine[turn] if turn < len(mine) else [None] * len(parameters)
            flat = _flat(
                [g for g, is_used in zip(given, used, strict=True) if is_used],
                wanted,
                self.world.size,
            )
            # each rank adds up one stretch of all, so that as many numbers travel as in a ring
            for of_rank, part in zip(nodes, self.world.exchange(flat), strict=True):
                if turn < len(of_rank):
                    known[of_rank[turn]] = part
        total = torch.cat(self.world.gather_tensors(tree_fold(*whole, known.get, torch.add)))
        sizes = [p.numel() for p in wanted]
        pieces = iter(total[: sum(sizes)].split(sizes))
        return [
            next(pieces).view_as(p).to(p.dtype).clone() if is_used else None
            for p, is_used in zip(parameters, used, strict=True)
        ]

    def _of_part(
        self,
        loss: LossOfRows,
        rows: Int64[Tensor, " s"],
        total: int,
        parameters: Sequence[nn.Parameter],
    ) -> tuple[Grads, Tally]:
        tally = Tally()
        grads: Grads = [None] * len(parameters)
        for part in torch.split(rows, self.micro_batch or max(1, len(rows))) if len(rows) else ():
            value, numbers = loss(part)
            new = torch.autograd.grad(value * (len(part) / total), parameters, allow_unused=True)
            grads = _add(grads, list(new))
            tally.add(numbers, weight=len(part))
        return grads, tally

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _add(first: Grads, second: Grads) -> Grads:
    return [
        b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)
    ]


def _flat(
    grads: Sequence[Tensor | None], parameters: Sequence[nn.Parameter], multiple: int
) -> Tensor:
    """One vector, its length a multiple of `multiple`; zeros where there is no gradient."""
    parts = [
        torch.zeros(p.numel(), dtype=p.dtype, device=p.device) if g is None else g.reshape(-1)
        for g, p in zip(grads, parameters, strict=True)
    ]
    flat = torch.cat(parts) if parts else torch.zeros(0)
    return nn.functional.pad(flat, (0, -len(flat) % multiple))


class Tally:
    """Weighted means of named numbers, and maxima of those whose name ends in `_max`."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.weights: dict[str, float] = {}

    def add(self, numbers: dict[str, float], weight: float = 1.0) -> None:
        for name, number in numbers.items():
            if name.endswith("_max"):
                self.sums[name] = max(self.sums.get(name, -math.inf), number)
            else:
                self.sums[name] = self.sums.get(name, 0.0) + weight * number
                self.weights[name] = self.weights.get(name, 0.0) + weight

    def merge(self, other: Tally) -> None:
        for name, number in other.sums.items():
            if name.endswith("_max"):
                self.sums[name] = max(self.sums.get(name, -math.inf), number)
            else:
                self.sums[name] = self.sums.get(name, 0.0) + number
                self.weights[name] = self.weights.get(name, 0.0) + other.weights[name]

    def means(self) -> dict[str, float]:
        return {name: total / self.weights.get(name, 1.0) for name, total in self.sums.items()}
