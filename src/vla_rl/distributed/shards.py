"""Which part of a run belongs to which process.

All environments of a run, over all processes, are cut into a fixed number of shards. Whatever is drawn at random is
drawn by environment or by shard, and sums go over shards in a fixed order. So it does not matter how many processes
share them: each takes whole shards, as many as the others or one more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from vla_rl.config.errors import require
from vla_rl.distributed.world import SingleProcess, World

T = TypeVar("T")


@dataclass(frozen=True)
class Shards:
    """The environments of a run in shards, and the part of one process."""

    num_envs: int
    """Environments of all processes together."""
    count: int
    rank: int = 0
    size: int = 1

    @staticmethod
    def of(num_envs: int, count: int, world: World = SingleProcess()) -> Shards:
        """At most as many shards as environments. ConfigError where a process would have none."""
        count = min(count, num_envs)
        require(
            world.size <= count,
            f"{world.size} processes cannot share {count} shards of {num_envs} environments: take at most {count} "
            "processes, or set parallel.shards and env.num_envs higher",
        )
        return Shards(num_envs, count, world.rank, world.size)

    def of_env(self, env: int) -> int:
        """The shard of an environment: as equal parts as can be, in order."""
        return env * self.count // self.num_envs

    def by_env(self) -> Int64[np.ndarray, " N"]:
        """The shard of every environment."""
        return np.arange(self.num_envs) * self.count // self.num_envs

    def shards_of(self, rank: int) -> range:
        """The shards that a process takes."""
        return range(rank * self.count // self.size, (rank + 1) * self.count // self.size)

    @property
    def own(self) -> range:
        """The shards of this process."""
        return self.shards_of(self.rank)

    @property
    def own_envs(self) -> range:
        """The environments of this process, by their numbers in the run."""
        mine = np.flatnonzero(np.isin(self.by_env(), self.own))
        return range(int(mine[0]), int(mine[-1]) + 1)


def tree_nodes(low: int, high: int, own: range) -> list[tuple[int, int]]:
    """The largest parts of a binary tree over low..high that lie in `own` whole, in order."""
    if own.start <= low and high <= own.stop:
        return [(low, high)]
    if high - low < 2 or high <= own.start or own.stop <= low:
        return []
    middle = (low + high) // 2
    return tree_nodes(low, middle, own) + tree_nodes(middle, high, own)


def tree_fold(
    low: int,
    high: int,
    known: Callable[[tuple[int, int]], T | None],
    add: Callable[[T, T], T],
) -> T:
    """The sum over low..high, always with the same brackets; `known` gives the parts that are there already."""
    found = known((low, high))
    if found is not None:
        return found
    middle = (low + high) // 2
    return add(tree_fold(low, middle, known, add), tree_fold(middle, high, known, add))


def in_order(parts: Sequence[Sequence[T]]) -> list[T]:
    """What the processes gave, one after the other: the order of the shards."""
    return [item for part in parts for item in part]
