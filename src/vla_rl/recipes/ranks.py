"""Training in several processes of this machine: `vla-rl train ... --parallel.ranks 4`.

This process is rank 0: it writes the run folder, speaks to the terminal and hears signals. The others are its children
and end with it. Ranks that torchrun or Slurm has started: `launched_ranks`.
"""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from pathlib import Path

from torch._C._distributed_c10d import Store, TCPStore

from vla_rl.config import TrainConfig, UserError
from vla_rl.distributed.torch_world import TorchWorld
from vla_rl.distributed.watch import RankLostError, Watch
from vla_rl.recipes.train import train
from vla_rl.runtime.child_pool import ChildPool
from vla_rl.runtime.children import ChildLostError

HERE = "127.0.0.1"


def train_on_ranks(config: TrainConfig, resume: Path | None = None) -> Path:
    """`train` with the processes that `config.parallel` names; returns the run folder.

    UserError where another rank ends too early, with what it said; an error of the program is raised here as it was.
    """
    if config.parallel.arrangement == "pools":
        from vla_rl.recipes.pools import train_in_pools

        return train_in_pools(config, resume)
    size = config.parallel.ranks
    if size == 1:
        return train(config, resume)
    store = TCPStore(HERE, 0, size, is_master=True, wait_for_workers=False)
    with Watch(partial(_connect, store.port), 0) as watch, ChildPool(size - 1, reuse=False) as pool:
        others = [pool.submit(_follow, store.port, rank, config, resume) for rank in range(1, size)]
        for rank, other in enumerate(others, 1):
            other.add_done_callback(partial(_tell_death, watch, rank, size))
        try:
            folder = _train_as(0, store, watch, config, resume)
            for other in others:
                other.result()
        except RankLostError:
            _raise_bug(others)
            raise
    return folder


def _follow(port: int, rank: int, config: TrainConfig, resume: Path | None) -> None:
    """Another rank, in a process of its own."""
    with Watch(partial(_connect, port), rank) as watch:
        try:
            _train_as(rank, _connect(port), watch, config, resume)
        except RankLostError:
            raise
        except BaseException as error:
            watch.tell_own(error)
            raise


def _train_as(
    rank: int, store: Store, watch: Watch, config: TrainConfig, resume: Path | None
) -> Path:
    size = config.parallel.ranks
    world = TorchWorld(store, rank, size, config.parallel.timeout, rank, size, watch)
    try:
        return train(config, resume, world)
    finally:
        world.leave()


def _connect(port: int) -> Store:
    return TCPStore(HERE, port, is_master=False)


def _tell_death(watch: Watch, rank: int, size: int, ended: Future[None]) -> None:
    """A process that was killed has told nobody."""
    if not ended.cancelled() and isinstance(error := ended.exception(), ChildLostError):
        watch.tell(f"rank {rank} of {size} has died: {error}")


def _raise_bug(others: list[Future[None]]) -> None:
    """Raise what ended another rank where it is an error of the program, with its traceback."""
    for other in others:
        error = other.exception(timeout=0) if other.done() and not other.cancelled() else None
        if isinstance(error, Exception) and not isinstance(error, UserError | ChildLostError):
            raise error
