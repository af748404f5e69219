"""Gradients of a minibatch on several CPU cores, each a single-threaded share of the samples.

torch's own threads split every operation and wait for the slowest core after each: with anything else running (a
simulator, a browser) that is up to fifty times slower than one thread. Splitting the samples instead has one meeting
point per minibatch. Shares are combined in a fixed order, so the result is the same to the bit every time.

Several processes (`World`) each bring rows of their own to a minibatch. The mean is over all of them, and every process
gets the same gradient and the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vla_rl.distributed.world import SingleProcess, World
from vla_rl.runtime.cpus import available_cpus

LossOfRows = Callable[[Int64[Tensor, " b"]], tuple[Float[Tensor, ""], dict[str, float]]]
"""Mean loss over some samples, and named numbers about them."""


class ThreadedGradients:
    """Puts the gradient of a mean loss into `.grad`, computed in `shares` threads and in micro-batches.

    `shares` 0 takes one per CPU core; on a GPU there is always one.
    """

    def __init__(
        self,
        shares: int = 0,
        micro_batch: int = 0,
        device: torch.device | None = None,
        world: World = SingleProcess(),
    ) -> None:
        on_gpu = device is not None and device.type != "cpu"
        self.shares = 1 if on_gpu else shares or available_cpus()
        self.micro_batch, self.world = micro_batch, world
        self._pool = ThreadPoolExecutor(self.shares, "learner") if self.shares > 1 else None

    def backward(
        self, loss: LossOfRows, rows: Int64[Tensor, " b"], parameters: Sequence[nn.Parameter]
    ) -> dict[str, float]:
        """Set `.grad` of `parameters` to the gradient of the mean loss over `rows`; returns the numbers' means.

        Both are over the rows of all processes; a process may have none.
        """
        parts = [part for part in torch.tensor_split(rows, self.shares) if len(part)]
        total = sum(self.world.gather(len(rows)))

        def share(part: Int64[Tensor, " s"]) -> tuple[list[Tensor | None], Tally]:
            return self._share(loss, part, total, parameters)

        results = list(self._pool.map(share, parts)) if self._pool else [share(p) for p in parts]
        own: list[Tensor | None] = [
            _sum([grads[i] for grads, _ in results]) for i in range(len(parameters))
        ]
        for parameter, grad in zip(parameters, self._over_ranks(own, parameters), strict=True):
            parameter.grad = grad
        tally = Tally()
        for part in self.world.gather([tally for _, tally in results]):
            for share_tally in part:
                tally.merge(share_tally)
        return tally.means()

    def _over_ranks(
        self, grads: list[Tensor | None], parameters: Sequence[nn.Parameter]
    ) -> list[Tensor | None]:
        """Sums over the ranks; None where no rank has a gradient, so that the optimizer leaves the parameter alone."""
        owned = self.world.gather([grad is not None for grad in grads])
        used = [any(flags) for flags in zip(*owned, strict=True)]
        given = [
            torch.zeros_like(parameter) if grad is None else grad
            for grad, parameter, wanted in zip(grads, parameters, used, strict=True)
            if wanted
        ]
        sums = iter(self.world.sum(given))
        return [next(sums) if wanted else None for wanted in used]

    def _share(
        self,
        loss: LossOfRows,
        rows: Int64[Tensor, " s"],
        total: int,
        parameters: Sequence[nn.Parameter],
    ) -> tuple[list[Tensor | None], Tally]:
        tally = Tally()
        grads: list[Tensor | None] = [None] * len(parameters)
        for part in torch.split(rows, self.micro_batch or len(rows)):
            value, numbers = loss(part)
            new = torch.autograd.grad(value * (len(part) / total), parameters, allow_unused=True)
            grads = [_sum(pair) for pair in zip(grads, new, strict=True)]
            tally.add(numbers, weight=len(part))
        return grads, tally

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _sum(grads: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of those that there are, in their order."""
    total = None
    for grad in grads:
        if grad is not None:
            total = grad if total is None else total + grad
    return total


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
