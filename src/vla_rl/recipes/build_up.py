"""Build the recipe up: each row has one part more than the row it stands on.

    vla-rl ablate metaworld-mt5 --build-up --checkpoint runs/sft/policy --reward-model runs/reward --seeds 3

fine-tuning                  the policy that everything starts from
+ reward model               the same policy: of several continuations the reward model chooses; no practice
+ PPO                        practice for success alone, every task alike
+ process reward             the same practice, also paid for what the reward model sees
+ curriculum                 the same with the preset's choice of tasks: the whole recipe
+ test time                  the policies of the whole recipe, and of several continuations the reward model chooses

The runs are those of `vla-rl ablate` in the same folder: what one of the two has trained the other does not train
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import MinLen

from vla_rl.config import AblationConfig, EnvConfig, EvalConfig, TrainConfig, UserError
from vla_rl.config.search import BestOfConfig, ScalingConfig, StudyChooser
from vla_rl.recipes.ablate import SUCCESS_ALONE, planned_run
from vla_rl.recipes.many_runs import diverged, finish_all, folder_of, train_all
from vla_rl.recipes.test_time_scaling import scaling_study
from vla_rl.report.comparison.build_up import Row, write_build_up
from vla_rl.report.comparison.held_out import Outcome
from vla_rl.report.run_data import Mode
from vla_rl.runtime.external import read_json
from vla_rl.runtime.files import require_writable
from vla_rl.runtime.progress import note


class Chooser(NamedTuple):
    """What scores candidates."""

    name: StudyChooser
    reward_model: str


class Plan(NamedTuple):
    """What is trained, by cell and seed, and what is searched, by start and seed."""

    rows: tuple[str, ...]
    runs: dict[tuple[str, int], TrainConfig]
    searches: dict[tuple[str, int], ScalingConfig]
    env: EnvConfig
    chooser: Chooser | None


STANDS_ON = {
    "reward": ("sft",),
    "ppo": ("sft",),
    "process-reward": ("ppo",),
    "curriculum": ("process-reward", "ppo"),
    "test-time": ("curriculum", "process-reward", "ppo"),
}
"""Row -> what it has one part more than: the first of these that the table has."""
CELLS = {"ppo": SUCCESS_ALONE, "process-reward": "no-curriculum", "curriculum": "full"}
"""Row -> the cell of `vla-rl ablate` that it is."""
START, END = "start", "end"


def build_up(config: AblationConfig) -> Path:
    """Do what is still to do, and write build-up.md. Returns its path.

    Raises UserError where there is no policy to start from, a folder holds something else than what is planned, or a
    part could not be completed, and `Stopped`, a KeyboardInterrupt, where a signal ended it.
    """
    if not config.checkpoint:
        raise UserError(
            "ablate --build-up: needs the policy that everything starts from: --checkpoint runs/sft/policy (from "
            "`vla-rl "
            "sft` or a quickstart)"
        )
    out = require_writable(Path(config.out), "folder")
    plan = planned(config)
    train_all(
        {f"{cell}, seed {seed}": run for (cell, seed), run in plan.runs.items()}, config.parallel
    )
    # each looks at what it finds: a policy that has changed since is refused, not taken for the same
    finish_all(
        {f"search from the {w}, seed {s}": (scaling_study, (c, plan.env)) for (w, s), c in plan.searches.items()},
        lambda _: True,
        config.parallel,
        of=len(plan.searches),
    )  # fmt: skip
    rows = [_row(name, config, plan) for name in plan.rows]
    return write_build_up(rows, out, _notes(config, plan))


# -- what is planned


def planned(config: AblationConfig) -> Plan:
    """The rows that this recipe has, and everything that they need."""
    whole = planned_run(config, "full", 0)
    chooser = _chooser(whole)
    paid = whole.reward.chosen_kind != "success"
    chosen = whole.curriculum.mode != "uniform"
    present = {
        "sft": True,
        "reward": chooser is not None,
        "ppo": True,
        "process-reward": paid,
        "curriculum": chosen,
        "test-time": chooser is not None,
    }
    missing = [name for name, there in present.items() if not there]
    if missing:
        note(f"left out, as the recipe has no such part: {', '.join(missing)}")
    rows = tuple(name for name, there in present.items() if there)
    seeds = range(config.seeds)
    runs = {
        (CELLS[r], s): planned_run(config, CELLS[r], s) for s in seeds for r in rows if r in CELLS
    }
    last = CELLS[[row for row in rows if row in CELLS][-1]]
    searches = {}
    for seed in seeds:
        searches[START, seed] = _search(
            config, whole, Path(config.checkpoint), START, seed, chooser
        )
        if chooser is not None:
            run = folder_of(runs[last, seed])
            searches[END, seed] = _search(config, whole, run, END, seed, chooser)
    return Plan(rows, runs, searches, whole.env, chooser)


def _chooser(whole: TrainConfig) -> Chooser | None:
    """What the whole recipe is paid by chooses candidates, too."""
    if whole.reward.model:
        return Chooser("reward-model-alone", whole.reward.model)
    if whole.reward.chosen_kind == "simulator":
        return Chooser("simulator", "")
    return None


def _search(
    config: AblationConfig,
    whole: TrainConfig,
    policy: Path,
    name: str,
    seed: int,
    chooser: Chooser | None,
) -> ScalingConfig:
    """Plain play and best of N of one policy; nothing but the chooser decides, success seen ahead is not told."""
    protocol: EvalConfig = replace(whole.eval, seed=seed, temperature=0.0)
    return ScalingConfig(
        str(policy),
        search=BestOfConfig(
            best_of=config.best_of,
            reward_model="" if chooser is None else chooser.reward_model,
            temperature=whole.rollout.temperature,
        ),
        protocol=protocol,
        sizes=(1,) if chooser is None else (config.best_of,),
        choosers=("random",) if chooser is None else (chooser.name,),
        out=str(Path(config.out) / f"search-{name}-seed-{seed}"),
        workers=whole.env.num_workers,
    )


# -- what came of it


@dataclass(frozen=True)
class _Episode:
    task: str
    initial_state: int
    success: bool


@dataclass(frozen=True)
class _Evaluation:
    episodes: Annotated[list[_Episode], MinLen(1)]


def _row(name: str, config: AblationConfig, plan: Plan) -> Row:
    seeds = range(config.seeds)
    files: dict[Mode, Sequence[Path]]
    if name in CELLS:
        folders = [folder_of(plan.runs[CELLS[name], seed]) / "eval" for seed in seeds]
        files = {
            "greedy": [folder / "after-greedy.json" for folder in folders],
            "sampled": [folder / "after-sampled.json" for folder in folders],
        }
    else:
        start = START if name in ("sft", "reward") else END
        folders = [Path(plan.searches[start, seed].out) / "evaluations" for seed in seeds]
        if name == "sft":
            files = {
                "greedy": [folder / "greedy-1.json" for folder in folders],
                "sampled": [folder / "sampled-1.json" for folder in folders],
            }
        else:
            assert plan.chooser is not None
            best = f"{plan.chooser.name}-{config.best_of}.json"
            files = {"greedy": [folder / best for folder in folders]}
    below = next((row for row in STANDS_ON.get(name, ()) if row in plan.rows), "")
    own = [plan.runs[CELLS[name], seed] for seed in seeds] if name in CELLS else []
    outcomes: dict[Mode, tuple[Outcome, ...]] = {
        mode: tuple(_outcome(file, seed) for seed, file in zip(seeds, paths, strict=True))
        for mode, paths in files.items()
    }
    return Row(name, below, outcomes, diverged(own))


def _outcome(file: Path, seed: int) -> Outcome:
    remedy = "Remove it, and give the same command again."
    episodes = read_json(file, _Evaluation, remedy=remedy).episodes
    return Outcome(None, seed, {(e.task, e.initial_state): e.success for e in episodes})


def _notes(config: AblationConfig, plan: Plan) -> dict[str, Any]:
    whole = planned_run(config, "full", 0)
    return {
        "preset": config.preset,
        "algorithm": whole.algorithm.upper(),
        "best_of": config.best_of,
        "chooser": "" if plan.chooser is None else plan.chooser.name,
        "curriculum": whole.curriculum.mode,
        "reward": whole.reward.chosen_kind,
        "temperature": whole.rollout.temperature,
    }
