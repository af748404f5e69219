"""Gradients of a policy of whose weights every rank keeps a part (`distributed.sharding`).

The tree of `gradients` leaves every rank with all gradients. Here the backward pass sums each unit's over the ranks and
leaves a rank with its part. Ranks pass in step: one with fewer samples makes empty passes of weight zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from vla_rl.algorithms.gradients import LossOfRows, Tally
from vla_rl.algorithms.learner import finite
from vla_rl.distributed.sharding import Sharding, is_sharded, local
from vla_rl.distributed.shards import Shards, in_order


class ShardedGradients:
    """The interface of `ThreadedGradients`; the same mean over all samples of all ranks.

    Parameters that are not sharded (the head of a shared critic) are summed over the ranks in their order.
    """

    threads = 1

    def __init__(self, sharding: Sharding, micro_batch: int, shards: Shards | None) -> None:
        self.sharding, self.world = sharding, sharding.world
        self.micro_batch, self.shards = micro_batch, shards

    @property
    def own_shards(self) -> range | None:
        """The shards whose parts this process brings; None: all that there are."""
        return self.shards.own if self.shards else None

    def passes(self, rows: Int64[Tensor, " s"], size: int) -> list[Int64[Tensor, ...]]:
        """The rows in passes of at most `size` (0: one), as many on all ranks: some are empty."""
        own = list(torch.split(rows, size or max(1, len(rows)))) if len(rows) else []
        most = max(self.world.gather(len(own)))
        return own + [rows[:0]] * (most - len(own))

    def backward(
        self,
        loss: LossOfRows,
        parts: Sequence[Int64[Tensor, ...]],
        parameters: Sequence[nn.Parameter],
    ) -> dict[str, float]:
        """As `ThreadedGradients.backward`. Of no rows, `loss` makes the same passes as of some."""
        rows = torch.cat(list(parts)) if parts else torch.zeros(0, dtype=torch.int64)
        total = sum(self.world.gather(len(rows)))
        tally = Tally()
        for parameter in parameters:
            parameter.grad = None
        for part in self.passes(rows, self.micro_batch):
            value, numbers = loss(part)
            with self.sharding.meeting("an exchange of gradients"):
                (value * (len(part) / total)).backward()
            if len(part):
                tally.add(numbers, weight=len(part))
        self._sum([p for p in parameters if not is_sharded(p)])
        merged = Tally()
        for one in in_order([[each] for each in self.world.gather(tally)]):
            merged.merge(one)
        return merged.means()

    def _sum(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of what every rank holds whole."""
        with_gradient = [p for p in parameters if p.grad is not None]  # in step, so on all ranks
        sums = self.world.sum([p.grad.cpu() for p in with_gradient if p.grad is not None])
        for parameter, grad in zip(with_gradient, sums, strict=True):
            parameter.grad = grad.to(parameter.device)

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """Scale the gradient down to the norm `most`; returns its norm before, the same on all ranks."""
        grads = [p.grad for p in parameters if p.grad is not None]
        squares = self.world.gather(_squares(g for g in grads if is_sharded(g)))
        norm = math.sqrt(sum(squares) + _squares(g for g in grads if not is_sharded(g)))
        factor = min(1.0, most / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
        for grad in grads:
            local(grad).mul_(factor)
        return torch.tensor(norm)

    def finite(self, tensors: Iterable[Tensor]) -> bool:
        """Whether every number is finite, on all ranks."""
        return not self.world.any(not finite(map(local, tensors)))

    def close(self) -> None:
        pass


def _squares(grads: Iterable[Tensor]) -> float:
    return sum(float(local(grad).double().square().sum()) for grad in grads)
