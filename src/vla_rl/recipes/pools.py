"""Training with pools of processes on one machine or several: `vla-rl train ... --parallel.arrangement pools`.

This process is rank 0: it writes the run folder, speaks to the terminal and hears signals. The other learners, the
actors and the simulator hosts are Ray actors of its job, and end with it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import Store, TCPStore

from vla_rl.config import TrainConfig, UserError
from vla_rl.distributed.learner_seats import Seats, take_seats
from vla_rl.distributed.ray_cluster import open_cluster
from vla_rl.distributed.ray_errors import (
    PeerFailedError,
    PeerLostError,
    PeerSilentError,
    answer_of,
)
from vla_rl.distributed.ray_world import world_of_learner
from vla_rl.distributed.watch import RankLostError, Watch
from vla_rl.recipes.train import train
from vla_rl.rollout.actor import enter_folder
from vla_rl.runtime.signals import STOPPING, leave_signals_to_parent

_LAST_WORDS = 30.0
"""Seconds in which learners end after the first has."""
_LOOK = 1.0
"""Seconds between two looks at whether the learners live."""
_HERE = "vla_rl/here/{}"


def train_in_pools(config: TrainConfig, resume: Path | None = None) -> Path:
    """`train` with learners, actors and simulator hosts as `config.parallel` says; returns the run folder.

    UserError where another learner ends too early, with what it said: the run then goes on from its last checkpoint.
    """
    size = config.parallel.learners
    with open_cluster(config.parallel) as ray, take_seats(config.parallel) as seats:
        seats.sit_down(config.policy.device)
        if size == 1:
            return train(config, resume)
        store = TCPStore(seats.address, 0, size, is_master=True, wait_for_workers=False)
        connect = partial(_connect, seats.address, store.port)
        with Watch(connect, 0) as watch:
            others = _start_others(ray, seats, store.port, config, resume)
            looking = _Deaths(watch, [reference for _, reference in others])
            try:
                _wait_for_all(store, size, config.parallel.timeout)
                folder = _train_as(0, store, watch, config, resume, seats.share.gpus == 1)
                looking.wait()
            finally:
                looking.stop()
                for actor, _ in others:
                    with suppress(Exception):
                        ray.kill(actor)
    return folder


class LearnerRank:
    """Another learner's side: a Ray actor."""

    def follow(
        self,
        address: str,
        port: int,
        rank: int,
        config: TrainConfig,
        resume: Path | None,
        folder: str,
        own_gpu: bool,
    ) -> None:
        """Train as rank `rank` to the end of the run."""
        leave_signals_to_parent()
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        enter_folder(folder)
        connect = partial(_connect, address, port)
        with Watch(connect, rank) as watch:
            try:
                store = connect()
                store.set(_HERE.format(rank), "1")
                _train_as(rank, store, watch, config, resume, own_gpu)
            except RankLostError:
                raise
            except BaseException as error:
                watch.tell_own(error)
                raise


class _Deaths:
    """Looks whether the other learners live: one that was killed has told nobody."""

    def __init__(self, watch: Watch, followed: Sequence[Any]) -> None:
        self._watch, self._followed = watch, followed
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="deaths", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until all have ended as they should."""
        self._thread.join(_LAST_WORDS)

    def stop(self) -> None:
        self._over.set()

    def _look(self) -> None:
        size = len(self._followed) + 1
        waiting = dict(enumerate(self._followed, 1))
        while waiting and not self._over.is_set():
            for rank, reference in list(waiting.items()):
                try:
                    answer_of(reference, _LOOK, f"rank {rank} of {size}")
                except PeerSilentError:
                    continue
                except (PeerLostError, PeerFailedError) as error:
                    self._watch.tell(str(error))
                except UserError as error:
                    self._watch.tell(str(error))  # where it has not done so itself
                del waiting[rank]


def _train_as(
    rank: int,
    store: Store,
    watch: Watch,
    config: TrainConfig,
    resume: Path | None,
    own_gpu: bool,
) -> Path:
    parallel = config.parallel
    world = world_of_learner(store, rank, parallel.learners, parallel.timeout, watch, own_gpu)
    try:
        return train(config, resume, world)
    finally:
        world.leave()


def _wait_for_all(store: Store, size: int, timeout: float) -> None:
    """Until the other learners are there, so that what keeps one away is heard at once."""
    until = time.monotonic() + timeout
    for rank in range(1, size):
        while not store.check([_HERE.format(rank)]):
            if time.monotonic() > until:
                raise RankLostError(
                    f"rank {rank} of {size} has not come within {timeout:g} s (parallel.timeout): `ray status` shows "
                    "whether the cluster has room for it"
                )
            time.sleep(_LOOK / 5)


def _connect(address: str, port: int) -> Store:
    return TCPStore(address, port, is_master=False)


def _start_others(
    ray: Any, seats: Seats, port: int, config: TrainConfig, resume: Path | None
) -> list[tuple[Any, Any]]:
    """The other learners: each as its Ray actor, and what will come when it has ended."""
    remote = ray.remote(LearnerRank)
    started = []
    for rank in range(1, config.parallel.learners):
        actor = remote.options(max_restarts=0, **seats.of(rank)).remote()
        followed = actor.follow.remote(
            seats.address, port, rank, config, resume, os.getcwd(), seats.share.gpus == 1
        )
        started.append((actor, followed))
    return started
