"""Ranks that meet through torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from vla_rl.config.errors import UserError

T = TypeVar("T")


class RankLostError(UserError):
    """Another rank has ended, or has not come to a meeting in time: this run cannot go on."""


class TorchWorld:
    """The `World` of a process group. Every meeting waits `timeout` seconds at most."""

    def __init__(self, store: Store, rank: int, size: int, timeout: float) -> None:
        """Join the group that `store` leads to. RankLostError if the others do not come."""
        self.rank, self.size, self._timeout = rank, size, timeout
        with self.meeting("the start"):
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
            )

    def gather(self, value: T) -> list[T]:
        given: list[Any] = [None] * self.size
        with self.meeting("an exchange"):
            dist.all_gather_object(given, value)
        return given

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        given = [torch.empty_like(tensor) for _ in range(self.size)]
        with self.meeting("an exchange of gradients"):
            dist.all_gather(given, tensor.contiguous())
        return given

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if not tensors:
            return []
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        parts = self.gather_tensors(flat)
        total = parts[0]
        for part in parts[1:]:  # in the order of the ranks, so that all get the same to the bit
            total = total + part
        sizes = [tensor.numel() for tensor in tensors]
        return [
            part.view_as(tensor) for part, tensor in zip(total.split(sizes), tensors, strict=True)
        ]

    def mean(self, value: float) -> float:
        return sum(self.gather(value)) / self.size

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def broadcast(self, value: T) -> T:
        given: list[Any] = [value]
        with self.meeting("an exchange"):
            dist.broadcast_object_list(given, src=0)
        return given[0]

    def barrier(self) -> None:
        self.gather(None)

    def leave(self) -> None:
        """End the membership."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def meeting(self, what: str, *, computes: bool = False) -> Iterator[None]:
        """Inside, a rank that is lost raises RankLostError. computes: other errors may come, which stay as they are."""
        try:
            yield
        except RuntimeError as error:  # of gloo: a closed connection, or the time is over
            if computes and not _is_loss(error):
                raise
            raise RankLostError(
                f"rank {self.rank} of {self.size} waited for the others in vain, at {what}: one of them has ended or "
                f"was silent for {self._timeout:g} s ({str(error).splitlines()[0][:200]})"
            ) from error


def _is_loss(error: RuntimeError) -> bool:
    """Whether it comes from the exchange between ranks: gloo's errors are of no class of their own."""
    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer")
    )
