"""The Ray cluster on which pools live: joining one or starting one, what each process may use, and its end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil

from vla_rl.config.errors import UserError
from vla_rl.config.parallel import ParallelConfig
from vla_rl.distributed.ray_errors import (
    PeerFailedError,
    PeerLostError,
    PeerSilentError,
    answer_of,
    require_ray,
)
from vla_rl.distributed.software import differences, software_here

_log = logging.getLogger(__name__)

START_TIMEOUT = 120.0
"""Seconds in which the machines of a cluster must say what is installed there."""
_KNOCK = 10.0  # seconds
_SMALL_MACHINE = 48 * 2**30  # bytes
_SMALL_STORE = 500 * 2**20  # bytes


@dataclass(frozen=True)
class Share:
    """What Ray sets aside for each process of the pools."""

    cpus: float
    gpus: float
    """Of learners and actors."""
    simulator_workers: int
    """Simulator processes in each host."""


@contextmanager
def open_cluster(parallel: ParallelConfig) -> Iterator[Any]:
    """Join the cluster or start one, check that it can carry the pools, and leave it; gives the module `ray`.

    What a run has started there ends with it, and so does a cluster that was started here. A process that is connected
    already stays so.

    Raises UserError: Ray is not installed or not reachable, machines differ in software, or there are too few GPUs.
    """
    with _own_signals():
        ray = require_ray()
        joined = not ray.is_initialized()
        if joined:
            _connect(ray, parallel)
    try:
        _require_same_software(ray)
        _warn_of_mixed_gpus(ray)
        share_of(parallel)
        yield ray
    finally:
        if joined:
            with suppress(Exception):
                ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray sets a handler of its own for SIGTERM."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        with suppress(ValueError):  # not the main thread: nothing was set
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def _connect(ray: Any, parallel: ParallelConfig) -> None:
    address = os.environ.get("RAY_ADDRESS", "") if parallel.ray == "auto" else parallel.ray
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": uuid.uuid4().hex}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would hide all GPUs from a process that asks for none, and bother with a warning about it
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not address or address == "local":
        return _start(ray, quiet)
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, and a bare Exception
        reason = " ".join(str(error).split())[:400]
        named = "RAY_ADDRESS" if parallel.ray == "auto" else "parallel.ray"
        raise UserError(
            f"there is no Ray cluster at {named} = {address} that this process can join: {reason}. Look with `ray "
            f"status --address {address}`, give the address that `ray start --head` has shown, or take --parallel.ray "
            "auto without RAY_ADDRESS to start one on this machine"
        ) from error


def _start(ray: Any, quiet: dict[str, Any]) -> None:
    """A cluster of this machine alone. Where the machine is too busy to start it in half a minute, once more."""
    small = psutil.virtual_memory().total < _SMALL_MACHINE
    store = _SMALL_STORE if small else None
    for last in (False, True):
        try:
            ray.init(address="local", include_dashboard=False, object_store_memory=store, **quiet)
            return
        except Exception as error:  # Ray has none of its own for this
            with suppress(Exception):
                ray.shutdown()
            if last:
                reason = " ".join(str(error).split())[:400]
                raise UserError(
                    f"Ray could not be started on this machine: {reason}. Its logs are in the folder of "
                    "its newest session, ray/session_latest/logs below the folder for temporary files"
                ) from error


def _knock(address: str) -> None:
    """Raise OSError or ValueError where nothing listens; Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise ValueError("expected an address as host:port, that of the cluster's head")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def alive_nodes(ray: Any) -> list[dict[str, Any]]:
    """The machines of the cluster, in a fixed order."""
    return sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"])


def on_node(node: dict[str, Any]) -> Any:
    """The scheduling strategy of what must run on this machine."""
    ray = require_ray()
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def _require_same_software(ray: Any) -> None:
    """UserError where a machine has other versions than this process, or no vla-rl at all."""

    def ask() -> dict[str, str]:  # by value: a machine without vla-rl must be able to say so
        from vla_rl.distributed.software import software_here

        return software_here()

    remote = ray.remote(num_cpus=0, max_retries=0)(ask)
    nodes = alive_nodes(ray)
    asked = [remote.options(scheduling_strategy=on_node(node)).remote() for node in nodes]
    for node, reference in zip(nodes, asked, strict=True):
        where = node_name(node)
        try:
            found = answer_of(reference, START_TIMEOUT, where)
        except (PeerLostError, PeerSilentError, PeerFailedError) as error:
            raise UserError(
                f"a machine of the Ray cluster cannot say what is installed there: {error}"
            ) from error
        other = differences(software_here(), found)
        if other:
            raise UserError(
                f"{where} has other software than the process that was started: {'; '.join(other)}. Learners, actors "
                "and hosts must compute the same: install the same there"
            )


def node_name(node: dict[str, Any]) -> str:
    """How a machine is called in messages."""
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def gpu_kinds(nodes: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Names of the kinds of GPUs in the cluster, and how many machines have them."""
    prefix = "accelerator_type:"
    return Counter(
        name.removeprefix(prefix)
        for node in nodes
        if node["Resources"].get("GPU", 0) > 0
        for name in node["Resources"]
        if name.startswith(prefix)
    )


def _warn_of_mixed_gpus(ray: Any) -> None:
    kinds = gpu_kinds(alive_nodes(ray))
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} on {count} node(s)" for kind, count in sorted(kinds.items()))
        _log.warning(
            "the Ray cluster has GPUs of several kinds (%s): they round differently, so another placement of the "
            "same run gives other numbers, and the slowest kind sets the pace. Take a cluster of one kind where that "
            "matters",
            listed,
        )


def share_of(parallel: ParallelConfig) -> Share:
    """What each process may use: whole cores and GPUs where there are enough, else equal parts.

    UserError where there are several GPUs, but fewer than learners and actors.
    """
    resources = require_ray().cluster_resources()
    return divide(parallel, resources.get("CPU", 1.0), resources.get("GPU", 0.0))


def divide(parallel: ParallelConfig, cpus: float, gpus: float) -> Share:
    """`share_of` for a cluster with so many cores and GPUs."""
    computing = parallel.learners + parallel.actors
    processes = computing + parallel.hosts
    if 1 < gpus < computing:
        raise UserError(
            f"{parallel.learners} learners and {parallel.actors} actors take a GPU each, the Ray cluster has {gpus:g}: "
            f"lower parallel.learners or parallel.actors to {gpus:g} together"
        )
    gpu = 0.0 if gpus < 1 else 1.0 if gpus >= computing else int(1000 / computing) / 1000
    cpu = min(1.0, max(1, int(100 * cpus / (processes + 1))) / 100)
    workers = max(1, int(cpus - computing) // parallel.hosts) if parallel.hosts else 1
    return Share(cpu, gpu, workers)
