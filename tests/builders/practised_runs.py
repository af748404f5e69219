"""Run folders as training leaves them, without the training: the curves and outcomes are made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vla_rl.config import EvalConfig, TrainConfig
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.result import evaluation_result, evaluation_specs
from vla_rl.recipes.presets import preset
from vla_rl.runtime.files import write_json
from vla_rl.runtime.run_folder import Run
from vla_rl.types import EpisodeSpec

TASKS = ("reach-red", "reach-blue", "grasp-block", "place-block")
STATES = 5
"""Held-out initial states of each task that are evaluated."""
Wins = Mapping[str, int]
"""For `before` and `after`: how many states of each task succeed, the first ones."""


def practised(
    root: Path,
    name: str,
    *,
    seed: int = 0,
    config: TrainConfig | None = None,
    success: Sequence[float] = tuple(np.linspace(0.2, 0.6, 20)),
    wins: Wins | None = None,
    states: int = STATES,
    episodes: int = 100,
    seconds: float = 30.0,
    during: Mapping[int, int] | None = None,
) -> Path:
    """A run of as many iterations as `success` has entries, each of so many `episodes` and `seconds`."""
    config = config or preset("toy")
    config = replace(config, run=replace(config.run, root=str(root), name=name, seed=seed))
    protocol = replace(config.eval, episodes_per_task=states)
    with Run.create(root, name, config, ["vla-rl", "train"]) as run:
        for number, rate in enumerate(success, 1):
            metrics = {f"success/{task}": rate for task in TASKS}
            metrics |= {"rollout/success_rate": rate, "rollout/simulator_steps": 1000.0}
            # the seed makes clocks differ, as they do
            spent = number * seconds + seed / 7
            metrics |= {"total/episodes": number * episodes, "total/train_seconds": spent}
            run.log(number, metrics)
        for stage, count in (wins or {"before": 1, "after": 3}).items():
            for mode, temperature in (("greedy", 0.0), ("sampled", config.rollout.temperature)):
                evaluate(run, f"{stage}-{mode}", config, replace(protocol, temperature=temperature), count)  # fmt: skip
        for iteration, count in (during or {}).items():
            evaluate(run, f"iteration-{iteration:06d}", config, protocol, count)
        return run.folder


def evaluate(run: Run, name: str, config: TrainConfig, protocol: EvalConfig, count: int) -> None:
    """Leave an evaluation in which the first `count` initial states of every task succeed."""
    specs = evaluation_specs(config.env, protocol, TASKS)
    result = evaluation_result(
        [record(spec, at // len(TASKS) < count) for at, spec in enumerate(specs)], config.env, protocol, 0, 1.0
    )  # fmt: skip
    write_json(run.eval_folder / f"{name}.json", result)


def record(spec: EpisodeSpec, success: bool) -> EpisodeRecord:
    return EpisodeRecord(spec, success, turns=3 if success else 5, simulator_steps=30)
