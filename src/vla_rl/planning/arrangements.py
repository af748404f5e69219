"""The ways in which a run can be spread over a machine, and how each is started."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vla_rl.config import TrainConfig
from vla_rl.config.parallel import ParallelConfig

MOST_SHARDS = 4096
MOST_CLIENTS = 16
"""GPUs for each engine among them: with more, all wait for it."""


@dataclass(frozen=True)
class Machine:
    """Nodes that are all alike."""

    nodes: int
    gpus: int
    """Of each node."""
    gpu_memory: float
    """Bytes of each GPU."""
    cpus: int
    """Cores of each node."""
    memory: float | None
    """Bytes of host memory of each node; None: not known, and not looked at."""
    gpu: str = "h200"
    """The kind of GPU, one of `timing.PEAK_FLOPS`."""

    @property
    def places(self) -> int:
        """How many ranks there can be: one on each GPU, or on each core."""
        return self.nodes * (self.gpus or self.cpus)


@dataclass(frozen=True)
class Arrangement:
    """Who plays, and who learns."""

    kind: Literal["single", "ranks", "fsdp2", "pools"]
    ranks: int
    """That learn."""
    actors: int = 0
    """GPUs, or processes, that decide and do not learn."""
    staleness: int = 0
    nodes: int = 1
    """That it takes."""

    @property
    def name(self) -> str:
        if self.kind == "pools":
            late = ", staleness 1" if self.staleness else ""
            return f"pools {self.ranks} + {self.actors}{late}"
        named = {
            "single": "single",
            "ranks": f"ranks {self.ranks}",
            "fsdp2": f"ranks {self.ranks}, fsdp2",
        }
        return named[self.kind]

    @property
    def ranks_a_node(self) -> int:
        """Of the fullest node."""
        return -(-self.ranks // self.nodes)

    def needed(self) -> tuple[str, ...]:
        """The options of `parallel` by which it is asked for."""
        return {
            "single": (),
            "ranks": ("ranks",),
            "fsdp2": ("ranks", "shard"),
            "pools": ("arrangement", "learners", "actors", "ray"),
        }[self.kind] + (("staleness",) if self.staleness else ())

    def in_this_version(self) -> bool:
        """Whether this version of the program has the options for it."""
        known = {entry.name for entry in dataclasses.fields(ParallelConfig)}
        return known.issuperset(self.needed())


def arrangements(machine: Machine, asked: int = 1) -> Iterator[Arrangement]:
    """All that the machine has room for, the simplest first, and `asked` ranks."""
    places = machine.places
    yield Arrangement("single", 1)
    counts = {places} if machine.gpus else {*_powers(places), places}
    for ranks in sorted(counts | {asked}):
        if ranks > 1:
            yield Arrangement("ranks", ranks, nodes=machine.nodes)
    if machine.gpus and places > 1:
        yield Arrangement("fsdp2", places, nodes=machine.nodes)
    for actors in _powers(places // 2) if machine.gpus else []:
        if places > MOST_CLIENTS * actors:
            continue
        for staleness in (0, 1):
            yield Arrangement("pools", places - actors, actors, staleness, machine.nodes)


def _powers(most: int) -> list[int]:
    found, number = [], 1
    while number <= most:
        found.append(number)
        number *= 2
    return found


def why_not(arrangement: Arrangement, config: TrainConfig) -> str:
    """Why the run cannot be spread like that; empty where it can."""
    envs = config.env.num_envs
    if arrangement.ranks > envs:
        return f"{envs} environments for {arrangement.ranks} ranks: set env.num_envs to {arrangement.ranks} or more"
    if arrangement.ranks > MOST_SHARDS:
        return f"parallel.ranks is at most {MOST_SHARDS}"
    return ""


def shards_of(arrangement: Arrangement, config: TrainConfig) -> int:
    """parallel.shards: the configuration's, or as many as there are ranks."""
    return min(max(config.parallel.shards, arrangement.ranks), config.env.num_envs)


def command(
    arrangement: Arrangement, machine: Machine, config: TrainConfig, words: Sequence[str]
) -> str:
    """What starts it: `words` are those after `vla-rl train`."""
    options = list(words)
    shards = shards_of(arrangement, config)
    if shards > config.parallel.shards:
        options += ["--parallel.shards", str(shards)]
    train = ["vla-rl", "train"]
    if arrangement.kind == "pools":
        options += [
            "--parallel.arrangement",
            "pools",
            "--parallel.learners",
            str(arrangement.ranks),
        ]
        options += ["--parallel.actors", str(arrangement.actors), "--parallel.ray", "auto"]
        options += ["--parallel.staleness", "1"] if arrangement.staleness else []
    elif arrangement.kind == "fsdp2":
        options += ["--parallel.shard", "fsdp2"]
    if arrangement.kind in ("ranks", "fsdp2"):
        if arrangement.nodes > 1:
            train = ["torchrun", "--nnodes", str(arrangement.nodes)]
            train += ["--nproc-per-node", str(arrangement.ranks_a_node)]
            train += [
                "--rdzv-backend",
                "c10d",
                "--rdzv-endpoint",
                "HOST:29500",
                "-m",
                "vla_rl",
                "train",
            ]
        else:
            options += ["--parallel.ranks", str(arrangement.ranks)]
    return shlex.join([*train, *options])
