"""The processes (ranks) that train one policy together, and what they tell each other.

Every rank holds the same weights and must take the same decisions: how long a run lasts, when an iteration's epochs
stop, whether training has diverged. Whatever such a decision depends on goes through the world first. A rank that
decides alone leaves the others waiting.

Each method below is a meeting of all ranks: every rank calls it, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@runtime_checkable
class World(Protocol):
    """The ranks of one training run, seen from one of them."""

    @property
    def rank(self) -> int:
        """Number of this process, 0..size - 1. Rank 0 alone writes to the run folder."""
        ...

    @property
    def size(self) -> int:
        """How many processes train together."""
        ...

    @property
    def local_rank(self) -> int:
        """Number among the ranks of this machine."""
        ...

    @property
    def local_size(self) -> int:
        """Ranks on this machine, which share its cores and GPUs."""
        ...

    def gather(self, value: T) -> list[T]:
        """What every rank gave, in the order of the ranks; values may differ in size."""
        ...

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank, in the order of the ranks; shapes and types agree on all ranks."""
        ...

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        """Cut into `size` equal parts, of which rank r is sent the r-th; returns what each rank sent to this one.

        tensor: a vector whose length is a multiple of `size`, the same on all ranks.
        """
        ...

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over the ranks, in their order; shapes and types agree on all ranks."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        ...

    def broadcast(self, value: T) -> T:
        """What rank 0 gave."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...

    def lap(self) -> dict[str, float]:
        """Seconds spent in meetings since it was last asked: `sync`, exchanging tensors, and `wait`, all others."""
        ...


@dataclass(frozen=True)
class SingleProcess:
    """One process that trains alone: whatever it gives comes back unchanged, to the bit."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def gather(self, value: T) -> list[T]:
        return [value]

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(tensors)

    def any(self, flag: bool) -> bool:
        return flag

    def broadcast(self, value: T) -> T:
        return value

    def barrier(self) -> None:
        pass

    def lap(self) -> dict[str, float]:
        return {}
