"""`vla-rl plan`: what fits on a machine, how fast it will be, and the command that starts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from vla_rl.config import TrainConfig, UserError
from vla_rl.planning.arrangements import Machine
from vla_rl.planning.calibration import calibrated
from vla_rl.planning.costs import Costs, packaged, read_costs, to_json
from vla_rl.planning.plan import as_json, plan
from vla_rl.planning.table import plan_table
from vla_rl.runtime.cpus import available_cpus
from vla_rl.runtime.files import require_writable, write_json

CPUS_A_GPU = 12
"""Of machines that are let with GPUs of this class, usually 12 to 28."""


def machine_of(
    nodes: int, gpus: int, gpu_memory: float, gpu: str, cpus: int = 0, ram: float = 0.0
) -> Machine:
    """Nodes of so many GPUs and cores each, memory in GB.

    What is 0 of `cpus` and `ram` is this machine's where there are no GPUs; else 12 cores a GPU, and memory that is not
    looked at.
    """
    if gpus:
        otherwise, memory = CPUS_A_GPU * gpus, None
    else:
        otherwise, memory = available_cpus(), float(psutil.virtual_memory().total)
    return Machine(
        nodes=nodes,
        gpus=gpus,
        gpu_memory=gpu_memory * 1e9,
        cpus=cpus or otherwise,
        memory=ram * 1e9 or memory,
        gpu=gpu,
    )


def make_plan(
    config: TrainConfig,
    machine: Machine,
    costs: Sequence[Path] = (),
    *,
    preset: str = "",
    words: Sequence[str] = (),
    episodes: int = 0,
    episode_turns: float = 0.0,
    json: Path | None = None,
    save_costs: Path | None = None,
) -> str:
    """The plan as text. UserError for what cannot be planned.

    costs: costs files and run folders, laid over the packaged costs. preset, words: of the command line. json,
    save_costs: files for the whole plan, and for the costs that were taken. See `planning.plan.plan`.
    """
    for file in (json, save_costs):
        if file is not None:
            require_writable(file, "file")
    taken = costs_for(machine, costs)
    made = plan(
        config,
        machine,
        taken,
        episodes=episodes,
        episode_turns=episode_turns,
        words=[preset, *words],
    )
    if json is not None:
        write_json(json, as_json(made, preset))
    if save_costs is not None:
        write_json(save_costs, to_json(taken))
    return plan_table(made)


def costs_for(machine: Machine, given: Sequence[Path] = ()) -> Costs:
    """The packaged costs, those of a machine with GPUs over those of one without, and what is given over both."""
    costs = packaged("laptop")
    if machine.gpus:
        costs = packaged("h200").over(costs)
    for path in given:
        if not path.exists():
            raise UserError(f"there is no costs file and no run folder at {path}")
        found = calibrated(path, costs) if path.is_dir() else read_costs(path)
        costs = found.over(costs)
    return costs
