"""Training in several processes of this machine: `vla-rl train ... --parallel.ranks 4`.

This process is rank 0: it writes the run folder, speaks to the terminal and hears signals. The others are its children
and end with it.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from torch._C._distributed_c10d import TCPStore

from vla_rl.config import TrainConfig, UserError
from vla_rl.distributed.torch_world import RankLostError, TorchWorld
from vla_rl.recipes.train_ppo import train
from vla_rl.runtime.child_pool import ChildPool
from vla_rl.runtime.children import ChildLostError

HERE = "127.0.0.1"


def train_on_ranks(config: TrainConfig, resume: Path | None = None) -> Path:
    """`train` with the processes that `config.parallel` names; returns the run folder.

    What another rank raises is raised here. UserError, too, where one has died.
    """
    if config.parallel.arrangement == "pools":
        from vla_rl.recipes.pools import train_in_pools

        return train_in_pools(config, resume)
    size = config.parallel.ranks
    if size == 1:
        return train(config, resume)
    store = TCPStore(HERE, 0, size, is_master=True, wait_for_workers=False)
    with ChildPool(size - 1, reuse=False) as pool:
        others = [pool.submit(_follow, store.port, rank, config, resume) for rank in range(1, size)]
        world = TorchWorld(store, 0, size, config.parallel.timeout)
        try:
            folder = train(config, resume, world)
            for other in others:
                other.result()
        except RankLostError as lost:
            raise _reason(others, lost) from lost
        finally:
            world.leave()
    return folder


def _follow(port: int, rank: int, config: TrainConfig, resume: Path | None) -> None:
    """Another rank, in a process of its own."""
    size, timeout = config.parallel.ranks, config.parallel.timeout
    world = TorchWorld(TCPStore(HERE, port, size, is_master=False), rank, size, timeout)
    try:
        train(config, resume, world)
    finally:
        world.leave()


def _reason(others: list[Future[None]], lost: RankLostError) -> UserError:
    """Why a rank is lost, where it can be known: the first that ended by something else than the loss of another."""
    for rank, other in enumerate(others, 1):
        try:
            error = other.exception(timeout=5)
        except TimeoutError:
            continue
        if isinstance(error, ChildLostError):
            return UserError(f"rank {rank} of {len(others) + 1} has died: {error}")
        if isinstance(error, UserError) and not isinstance(error, RankLostError):
            return error
    return lost
