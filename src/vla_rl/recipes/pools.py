"""Training with pools of processes on one machine or several: `vla-rl train ... --parallel.arrangement pools`.

This process is rank 0: it writes the run folder, speaks to the terminal and hears signals. The other learners, the
actors and the simulator hosts are Ray actors of its job, and end with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import TCPStore

from vla_rl.config import TrainConfig, UserError
from vla_rl.distributed.learner_seats import Seats, take_seats
from vla_rl.distributed.ray_cluster import open_cluster
from vla_rl.distributed.ray_errors import (
    PeerFailedError,
    PeerLostError,
    PeerSilentError,
    answer_of,
)
from vla_rl.distributed.torch_world import RankLostError, TorchWorld
from vla_rl.recipes.train_ppo import train
from vla_rl.rollout.actor import enter_folder

_LAST_WORDS = 5.0
"""Seconds in which a learner that has ended may still say why."""


def train_in_pools(config: TrainConfig, resume: Path | None = None) -> Path:
    """`train` with learners, actors and simulator hosts as `config.parallel` says; returns the run folder.

    What another process raises is raised here. UserError, too, where a learner has died: the run then goes on from its
    last checkpoint with `--resume`.
    """
    size = config.parallel.learners
    with open_cluster(config.parallel) as ray, take_seats(config.parallel) as seats:
        seats.sit_down(config.policy.device)
        if size == 1:
            return train(config, resume)
        store = TCPStore(seats.address, 0, size, is_master=True, wait_for_workers=False)
        others = _start_others(ray, seats, store.port, config, resume)
        world = None
        try:
            world = TorchWorld(store, 0, size, config.parallel.timeout)
            folder = train(config, resume, world)
            answer_of([reference for _, reference in others], config.parallel.timeout, "a learner")
        except RankLostError as lost:
            raise _reason([reference for _, reference in others], lost) from lost
        finally:
            if world is not None:
                world.leave()
            for actor, _ in others:
                with suppress(Exception):
                    ray.kill(actor)
    return folder


class LearnerRank:
    """Another learner's side."""

    def follow(
        self,
        address: str,
        port: int,
        rank: int,
        config: TrainConfig,
        resume: Path | None,
        folder: str,
    ) -> None:
        """Train as rank `rank` to the end of the run."""
        enter_folder(folder)
        size = config.parallel.learners
        store = TCPStore(address, port, size, is_master=False)
        world = TorchWorld(store, rank, size, config.parallel.timeout)
        try:
            train(config, resume, world)
        finally:
            world.leave()


def _start_others(
    ray: Any, seats: Seats, port: int, config: TrainConfig, resume: Path | None
) -> list[tuple[Any, Any]]:
    """The other learners: each as its Ray actor, and what will come when it has ended."""
    # several threads: then work is not done in the main one, where signals would be taken for ours to heed
    remote = ray.remote(LearnerRank)
    started = []
    for rank in range(1, config.parallel.learners):
        actor = remote.options(max_concurrency=2, max_restarts=0, **seats.of(rank)).remote()
        followed = actor.follow.remote(seats.address, port, rank, config, resume, os.getcwd())
        started.append((actor, followed))
    return started


def _reason(others: Sequence[Any], lost: RankLostError) -> UserError:
    """Why a rank is lost, where it can be known: the first that ended by something else than the loss of another."""
    size = len(others) + 1
    for rank, reference in enumerate(others, 1):
        try:
            answer_of(reference, _LAST_WORDS, f"rank {rank} of {size}")
        except PeerSilentError:
            continue
        except (PeerLostError, PeerFailedError) as error:
            return UserError(
                f"{error}. What was saved last is whole: go on with vla-rl train --resume and the run's folder"
            )
        except UserError as error:
            if "waited for the others in vain" not in str(error):
                return error
    return lost
