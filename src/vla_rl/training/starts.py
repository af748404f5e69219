"""Starts of a run's episodes, with the environments that can begin there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from vla_rl.config import TrainConfig, UserError
from vla_rl.curriculum import Starts, TaskSampler
from vla_rl.distributed.world import World
from vla_rl.envs.env import VectorEnv
from vla_rl.runtime.external import read_json
from vla_rl.runtime.progress import note

_Rate = Annotated[float, Ge(0), Le(1)]
ENOUGH = 0.5
"""Success from which on a share of the way is a fit start: both ends of the scale teach little."""


@dataclass(frozen=True)
class MeasuredStart:
    """Success of a task from one share of the way, as `vla-rl eval --starts --json` writes it."""

    fraction: _Rate
    success_rate: _Rate


@dataclass(frozen=True)
class MeasuredStarts:
    """The part of that file that a run reads."""

    starts: dict[str, list[MeasuredStart]]


def starts_of_run(
    config: TrainConfig, envs: VectorEnv, sampler: TaskSampler, world: World
) -> tuple[Starts, VectorEnv]:
    """Who draws the run's episodes, and the environments that play them; all ranks call it.

    Without `starts.dataset` both do as ever. UserError for a dataset that this run cannot start from.
    """
    if not config.starts.dataset:
        return Starts(config.starts, sampler, {}, config.run.seed), envs
    from vla_rl.rollout.starting import StartingVectorEnv, StartStates, require_same_everywhere

    if config.parallel.hosts:
        raise UserError(
            "starts.dataset: states can only be restored in simulators of the learners' own machines, and "
            f"parallel.hosts is {config.parallel.hosts}: set it to 0"
        )
    states = StartStates(config.starts.dataset, config.env)
    require_same_everywhere(world.gather(states.snapshots.digest), config.starts.dataset)
    states.require_restorable(envs)
    ways = states.ways()
    if not any(ways.values()):
        raise UserError(
            f"{config.starts.dataset}: no demonstration has a state from which a turn is left within env.horizon "
            f"{envs.horizon}: raise it, or collect longer demonstrations"
        )
    without = [task for task in envs.tasks if not ways.get(task)]
    if without and world.rank == 0:
        note(
            f"{config.starts.dataset} has no states of {', '.join(without)}: their episodes all start at their "
            "beginning"
        )
    fractions = _measured(Path(config.starts.measured)) if config.starts.measured else {}
    starts = Starts(
        config.starts, sampler, ways, config.run.seed, states.snapshots.digest, fractions
    )
    return starts, StartingVectorEnv(envs, states)


def _measured(path: Path) -> dict[str, float]:
    """For each task the smallest share at which success was at least `ENOUGH`, where it ever was."""
    remedy = "Give a file that `vla-rl eval POLICY --starts DATASET --json` wrote."
    measured = read_json(path, MeasuredStarts, remedy=remedy).starts
    fit = {
        task: [row.fraction for row in rows if row.success_rate >= ENOUGH]
        for task, rows in measured.items()
    }
    return {task: min(fractions) for task, fractions in fit.items() if fractions}
