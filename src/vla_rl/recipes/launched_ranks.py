"""Training as one of the ranks that torchrun or Slurm's srun has started, on one machine or on many.

    torchrun --nproc-per-node 8 -m vla_rl train libero-spatial-openvla-7b --run.name first
    srun --ntasks-per-node 8 vla-rl train libero-spatial-openvla-7b --run.name first

Before anything else the ranks compare what they were asked for and what they run. What is wrong with one of them is
said once, by rank 0, and all end.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from vla_rl.config import ConfigError, TrainConfig, UserError
from vla_rl.config.serialize import differences, from_json, to_json
from vla_rl.distributed.place import Place
from vla_rl.distributed.software import software_here
from vla_rl.distributed.torch_world import TorchWorld
from vla_rl.distributed.watch import RankLostError, Watch
from vla_rl.envs.registry import playable
from vla_rl.recipes.train import train
from vla_rl.runtime.progress import be_silent
from vla_rl.runtime.provenance import versions
from vla_rl.runtime.run_folder import read_config
from vla_rl.runtime.signals import Stopped

logger = logging.getLogger(__name__)

JOIN_TIMEOUT = 600.0
"""Seconds that the ranks may take to come together; python starts slowly from a network drive."""
_SPOKEN_TIMEOUT, _HEARD_TIMEOUT = 30.0, 15.0
_LOOK = 0.05  # seconds between two looks at the store

Request = Callable[[], tuple[TrainConfig, Path | None]]
"""What this process is asked for: a configuration, and the run folder to go on in."""


def train_launched(place: Place, request: Request) -> Path:
    """`train` as the rank of `place`; returns the run folder.

    UserError where anything is wrong on any rank; on other ranks than 0 it is a silent SystemExit, so that it is said
    once.
    """
    if place.rank > 0:
        be_silent(f"rank {place.rank}: ")
    store = _meet(place)
    with Watch(partial(_connect, place), place.rank) as watch:
        try:
            config, resume = _agree(place, store, request)
            world = TorchWorld(
                PrefixStore("ranks", store), place.rank, place.size, config.parallel.timeout,
                place.local_rank, place.local_size, watch,
            )  # fmt: skip
            try:
                folder = train(config, resume, world)
                watch.stop()
                world.barrier()  # rank 0 takes the store with it
            finally:
                world.leave()
        except SystemExit:  # of --help
            raise
        except BaseException as error:
            _end(place, watch, error)
            raise
    return folder


def _end(place: Place, watch: Watch, error: BaseException) -> None:
    """Tell the others, and raise a silent SystemExit where rank 0 speaks for this one."""
    stopped = isinstance(error, Stopped) and bool(str(error))  # by all, at the same iteration
    if not stopped and not isinstance(error, RankLostError):
        watch.tell_own(error)
    if place.rank == 0:
        watch.speak(place.size, _HEARD_TIMEOUT)
    elif stopped or (isinstance(error, UserError) and watch.is_spoken(_SPOKEN_TIMEOUT)):
        code = error.exit_code if isinstance(error, Stopped) else 2
        raise SystemExit(code) from error


def _meet(place: Place) -> Store:
    """The store in which the ranks meet; rank 0 opens it, unless the launcher has."""
    timeout = timedelta(seconds=JOIN_TIMEOUT)
    hosts = place.hosts and place.rank == 0
    try:
        store = TCPStore(
            place.address, place.port, None, hosts, timeout, wait_for_workers=False,
            multi_tenant=not hosts,
        )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if hosts and "EADDRINUSE" in str(error):
            raise UserError(
                f"port {place.port} of this machine ({socket.gethostname()}), where the ranks are to meet, is in use: "
                "set MASTER_PORT to a free one, the same for all ranks"
            ) from error
        raise UserError(
            f"rank {place.rank} cannot meet the others at {place.address}, port {place.port}: is rank 0 running there, "
            f"and does a firewall lie between? MASTER_ADDR and MASTER_PORT say where they meet ({reason})"
        ) from error
    return _of_attempt(place, store)


def _connect(place: Place) -> Store:
    return _of_attempt(place, TCPStore(place.address, place.port, None, False, multi_tenant=True))


def _of_attempt(place: Place, store: Store) -> Store:
    return PrefixStore(f"vla_rl/{place.attempt}", store)


def _agree(place: Place, store: Store, request: Request) -> tuple[TrainConfig, Path | None]:
    """The same configuration for all. UserError where the ranks were asked for different things, or run them.

    Rank 0 decides how the run is called, and whether a job that was started again goes on.
    """
    config, resume = request()
    config = _of_size(config, place, resume)
    simulator = playable(config.env).packages
    known = versions(simulator)
    own = {
        "host": socket.gethostname(),
        "config": to_json(config) | {"resume": None if resume is None else str(resume)},
        "versions": software_here() | {name: known[name] for name in simulator},
        "gpu": torch.cuda.get_device_name(place.local_rank % torch.cuda.device_count())
        if torch.cuda.is_available()
        else None,
    }
    store.set(f"hello/{place.rank}", json.dumps(own))
    records = [json.loads(_wait_for(store, f"hello/{rank}", rank)) for rank in range(place.size)]
    _require_equal(records)
    if place.rank == 0:
        config, resume = _gone_on_with(config, resume, place)
        decided = {"config": to_json(config), "resume": None if resume is None else str(resume)}
        store.set("decided", json.dumps(decided))
    decided = json.loads(_wait_for(store, "decided", 0))
    return from_json(TrainConfig, decided["config"]), decided["resume"] and Path(decided["resume"])


def _of_size(config: TrainConfig, place: Place, resume: Path | None) -> TrainConfig:
    asked = config.parallel.ranks
    if asked not in (1, place.size) and resume is None:
        raise ConfigError(
            f"{place.launcher} has started {place.size} processes, parallel.ranks is {asked}: leave it out, the "
            "launcher's number counts"
        )
    return replace(config, parallel=replace(config.parallel, ranks=place.size))


def _gone_on_with(
    config: TrainConfig, resume: Path | None, place: Place
) -> tuple[TrainConfig, Path | None]:
    """What the run of before was asked for, where the launcher has started the job again."""
    folder = Path(config.run.root) / config.run.name
    if place.attempt == 0 or resume is not None:
        return config, resume
    if not folder.is_dir():
        logger.warning(
            "%s has started the job again, and there is no run folder %s to go on in: it begins anew. Name the run "
            "with --run.name, so that it is found again",
            place.launcher,
            folder,
        )
        return config, None
    logger.info("%s has started the job again: going on with %s", place.launcher, folder)
    return _of_size(read_config(folder, TrainConfig), place, folder), folder


def _wait_for(store: Store, key: str, rank: int) -> bytes:
    """What a rank has written. It looks again and again, so that a signal is heard meanwhile."""
    until = time.monotonic() + JOIN_TIMEOUT
    while not store.check([key]):
        if time.monotonic() > until:
            raise RankLostError(f"rank {rank} has not come within {JOIN_TIMEOUT:g} s")
        time.sleep(_LOOK)
    return store.get(key)


def _require_equal(records: list[dict[str, Any]]) -> None:
    """UserError that names the first difference between the ranks; a warning for GPUs of different kinds."""
    first = records[0]
    for record in records:
        with suppress(KeyError):  # a name with the time in it
            record["config"]["run"].pop("name")
    for rank, record in enumerate(records):
        where = f"rank {rank} on {record['host']}"
        for part, remedy in (
            ("config", "give all ranks the same options"),
            ("versions", "install the same on all machines"),
        ):
            for name, (one, other) in differences(first[part], record[part]).items():
                raise UserError(
                    f"{where} has {name} {other}, rank 0 on {first['host']} has {one}: {remedy}"
                )
    kinds = sorted({str(record["gpu"]) for record in records})
    if len(kinds) > 1:
        logger.warning(
            "the ranks compute on different kinds of device (%s): the slowest sets the pace, and the ranks may round "
            "differently",
            ", ".join(kinds),
        )
