"""Where this process stands among those that a launcher has started: torchrun, or Slurm's srun."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vla_rl.config.errors import ConfigError, require

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE")


@dataclass(frozen=True)
class Place:
    """One rank, and where the ranks meet."""

    rank: int
    size: int
    local_rank: int
    """Number among the ranks of its machine."""
    local_size: int
    """Ranks on its machine."""
    address: str
    """Of the machine of rank 0."""
    port: int
    launcher: str
    hosts: bool = True
    """Whether rank 0 opens the port itself; torchrun does it for its ranks."""
    attempt: int = 0
    """How often the launcher has started the job again."""


def launched(environment: Mapping[str, str]) -> Place | None:
    """This process's place by what torchrun or srun has put into the environment; None: nobody has launched it.

    ConfigError for variables that contradict each other or lack one.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return _of_torchrun(environment)
    # a batch script has SLURM_PROCID too, but is not one of several tasks: only srun's steps are
    if "SLURM_PROCID" in environment and environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _of_slurm(environment)
    return None


def _of_torchrun(environment: Mapping[str, str]) -> Place:
    _require_all(environment, _TORCHRUN, "torchrun")
    rank, size, local_rank, local_size, port = (
        _number(environment, name) for name in _TORCHRUN if name != "MASTER_ADDR"
    )
    return _checked(
        Place(
            rank,
            size,
            local_rank,
            local_size,
            environment["MASTER_ADDR"],
            port,
            "torchrun",
            hosts=environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            attempt=_number(environment, "TORCHELASTIC_RESTART_COUNT", 0),
        )
    )


def _of_slurm(environment: Mapping[str, str]) -> Place:
    _require_all(environment, _SLURM, "srun")
    node, size = _number(environment, "SLURM_NODEID"), _number(environment, "SLURM_STEP_NUM_TASKS")
    on_nodes = _tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
    require(
        node < len(on_nodes) and sum(on_nodes) == size,
        f"SLURM_STEP_TASKS_PER_NODE={environment['SLURM_STEP_TASKS_PER_NODE']} does not fit node {node} of a step of "
        f"{size} tasks",
    )
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    job = _number(environment, "SLURM_JOB_ID", 0) * 101 + _number(environment, "SLURM_STEP_ID", 0)
    return _checked(
        Place(
            _number(environment, "SLURM_PROCID"),
            size,
            _number(environment, "SLURM_LOCALID"),
            on_nodes[node],
            environment.get("MASTER_ADDR") or first_host(nodes),
            # the same for all tasks of a step, another one for another job on the machine
            _number(environment, "MASTER_PORT", 20_000 + job % 10_000),
            "srun",
            attempt=_number(environment, "SLURM_RESTART_COUNT", 0),
        )
    )


def first_host(nodes: str) -> str:
    """The first machine of a Slurm list such as `gpu[003-005,9],login1`. ConfigError where there is none."""
    found = re.match(r"([^\[\],]+)(?:\[(\d+))?", nodes)
    if found is None:
        raise ConfigError(
            f"SLURM_STEP_NODELIST={nodes!r} names no machine: set MASTER_ADDR to that of the first task"
        )
    return found[1] + (found[2] or "")


def _tasks_per_node(text: str) -> list[int]:
    """Slurm's `4(x2),3`: 4, 4, 3."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        require(found is not None, f"SLURM_STEP_TASKS_PER_NODE={text!r} is not as Slurm writes it")
        assert found is not None
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _require_all(environment: Mapping[str, str], names: tuple[str, ...], launcher: str) -> None:
    missing = [name for name in names if name not in environment]
    require(
        not missing,
        f"the environment looks like that of {launcher}, but lacks {', '.join(missing)}: start with {launcher}, or "
        f"unset {'RANK and WORLD_SIZE' if launcher == 'torchrun' else 'SLURM_PROCID'} to train in one process",
    )


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    require(
        text.isdecimal() and len(text) < 12,
        f"the environment's {name} should be a number, 0 or more, got {text!r}",
    )
    return int(text)


def _checked(place: Place) -> Place:
    require(
        place.rank < place.size and place.local_rank < place.local_size <= place.size,
        f"{place.launcher} says rank {place.rank} of {place.size} and {place.local_rank} of {place.local_size} on this "
        "machine, which cannot be",
    )
    require(
        0 < place.port < 2**16, f"{place.launcher}'s port {place.port} is not one: set MASTER_PORT"
    )
    return place
