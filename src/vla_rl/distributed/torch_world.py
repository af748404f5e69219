"""Ranks that meet through torch.distributed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from vla_rl.distributed.watch import RankLostError, Watch

T = TypeVar("T")
_REASON = 5.0  # seconds that a rank which ends has to say why


joined = False
"""Whether this process has been a rank."""


class TorchWorld:
    """The `World` of a process group. Every meeting waits `timeout` seconds at most."""

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        timeout: float,
        local_rank: int = 0,
        local_size: int = 1,
        watch: Watch | None = None,
    ) -> None:
        """Join the group that `store` leads to. RankLostError if the others do not come.

        Objects go from CPU to CPU by gloo; tensors too, or by NCCL where every rank of this machine has a GPU of its
        own, which is then its current one. watch: knows why another rank has ended.
        """
        global joined
        joined = True
        self.rank, self.size, self._timeout = rank, size, timeout
        self.local_rank, self.local_size, self._watch = local_rank, local_size, watch
        self._seconds: dict[str, float] = {}
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if gpus:
            torch.cuda.set_device(local_rank % gpus)
        # two ranks on one GPU are more than NCCL can do
        own_gpu = gpus >= local_size and dist.is_nccl_available()
        with self.meeting("the start"):
            dist.init_process_group(
                "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
            )
            self._nccl = None
            if all(self.gather(own_gpu)):
                group = dist.new_group(backend="nccl", timeout=timedelta(seconds=timeout))
                self._nccl = group if isinstance(group, dist.ProcessGroup) else None

    def gather(self, value: T) -> list[T]:
        given: list[Any] = [None] * self.size
        with self.meeting("an exchange"):
            dist.all_gather_object(given, value)
        return given

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        near, group = self._near(tensor)
        given = [torch.empty_like(near) for _ in range(self.size)]
        with self.meeting("an exchange of tensors", "sync"):
            dist.all_gather(given, near, group=group)
        return [part.to(tensor.device) for part in given]

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        near, group = self._near(tensor)
        given = torch.empty_like(near)
        with self.meeting("an exchange of gradients", "sync"):
            dist.all_to_all_single(given, near, group=group)
        return list(given.to(tensor.device).chunk(self.size))

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

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def broadcast(self, value: T) -> T:
        given: list[Any] = [value]
        with self.meeting("an exchange"):
            dist.broadcast_object_list(given, src=0)
        return given[0]

    def barrier(self) -> None:
        self.gather(None)

    def lap(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        return seconds

    def leave(self) -> None:
        """End the membership."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _near(self, tensor: Tensor) -> tuple[Tensor, dist.ProcessGroup | None]:
        """The tensor where the group that carries it wants it, and that group."""
        if tensor.is_cuda and self._nccl is not None:
            return tensor.contiguous(), self._nccl
        return tensor.contiguous().cpu(), None

    def group_of(self, device: torch.device) -> dist.ProcessGroup | None:
        """The group that carries tensors of a device without a detour; None where there is none."""
        return self._nccl if device.type == "cuda" else dist.group.WORLD

    @contextmanager
    def meeting(
        self, what: str, counts_as: str = "wait", *, computes: bool = False
    ) -> Iterator[None]:
        """Inside, a rank that is lost raises RankLostError.

        computes: other errors may come, which stay as they are, and the time is not one of waiting alone.
        """
        began = time.perf_counter()
        try:
            yield
            if not computes:
                spent = time.perf_counter() - began
                self._seconds[counts_as] = self._seconds.get(counts_as, 0.0) + spent
        except RuntimeError as error:  # of gloo: a closed connection, or the time is over
            if computes and not _is_loss(error):
                raise
            reason = self._watch.reason(_REASON) if self._watch else None
            raise RankLostError(
                reason
                or f"rank {self.rank} of {self.size} waited for the others in vain, at {what}: one of them has ended "
                f"or was silent for {self._timeout:g} s ({str(error).splitlines()[0][:200]})"
            ) from error


def _is_loss(error: RuntimeError) -> bool:
    """Whether it comes from the exchange between ranks: gloo's errors are of no class of their own."""
    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer")
    )
