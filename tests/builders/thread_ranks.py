"""Ranks as threads of this process: the same meetings as between processes, without any."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


class ThreadRank:
    """The `World` protocol for one of several threads."""

    def __init__(self, rank: int, board: list[Any], meeting: threading.Barrier) -> None:
        self.rank, self.size = rank, len(board)
        self.local_rank, self.local_size = rank, self.size
        self._board, self._meeting = board, meeting

    def gather(self, value: T) -> list[T]:
        self._board[self.rank] = value
        self._meeting.wait()
        everyone = list(self._board)
        self._meeting.wait()  # nobody writes again before all have read
        return everyone

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        return self.gather(tensor)

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        return [parts.chunk(self.size)[self.rank] for parts in self.gather(tensor)]

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        totals = []
        for parts in zip(*self.gather(tensors), strict=True):
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            totals.append(total)
        return totals

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def broadcast(self, value: T) -> T:
        return self.gather(value)[0]

    def barrier(self) -> None:
        self._meeting.wait()

    def lap(self) -> dict[str, float]:
        return {}


def on_ranks(size: int, work: Callable[[ThreadRank], R]) -> list[R]:
    """What `work` returns on each rank. An error on one of them ends the meetings of the others."""
    board: list[Any] = [None] * size
    meeting = threading.Barrier(size)

    def run(rank: int) -> R:
        try:
            return work(ThreadRank(rank, board, meeting))
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(run, rank) for rank in range(size)]
        errors = [job.exception() for job in jobs]
        for error in sorted(
            (e for e in errors if e), key=lambda e: isinstance(e, threading.BrokenBarrierError)
        ):
            raise error
        return [job.result() for job in jobs]
