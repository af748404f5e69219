"""One training run with several seeds: how far is what it came to the seed's doing?

vla-rl train metaworld-mt5 --policy.checkpoint runs/sft/policy --run.name five --seeds 3 --jobs 2

Each run has a folder in <root>/<name>: seed-0, seed-1, ... The same command goes on with what is not complete, and more
seeds are added to those that are there. At the end the runs are compared.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vla_rl.config import TrainConfig, UserError
from vla_rl.config.bounds import INT64
from vla_rl.recipes.many_runs import folder_of, shared_out, train_all
from vla_rl.report.comparison.write import compare_runs
from vla_rl.runtime.files import require_writable
from vla_rl.runtime.run_folder import CONFIG

SEED = "{seed}"
"""In the folder of a policy or of a reward model it stands for the run's seed."""


def train_seeds(config: TrainConfig, seeds: int, jobs: int = 1) -> Path:
    """Train with `config.run.seed` and the seeds after it, `jobs` runs at a time; returns the path of the comparison.

    Raises UserError where a folder holds something else than what is asked for, or a run could not be completed, and
    `Stopped`, a KeyboardInterrupt, where a signal ended them.
    """
    study = require_writable(folder_of(config), "folder")
    if (study / CONFIG).is_file():
        raise UserError(
            f"{study} is a run, and several seeds want a folder of runs: choose another --run.name"
        )
    if config.run.seed + seeds - 1 > INT64:
        raise UserError(f"--seeds {seeds}: seeds from {config.run.seed} on would exceed {INT64}")
    runs = [seeded(config, seed, jobs) for seed in range(config.run.seed, config.run.seed + seeds)]
    train_all({f"seed {run.run.seed}": run for run in runs}, jobs)
    return compare_runs([str(folder_of(run)) for run in runs], study, title=study.name)


def seeded(config: TrainConfig, seed: int, jobs: int) -> TrainConfig:
    """The run of one seed; where several go on at a time, cores that nobody has given away are shared out."""
    shared = shared_out(config, jobs)
    env, run = (shared.env, shared.run) if jobs > 1 else (config.env, config.run)
    return replace(
        config,
        env=replace(config.env, num_workers=config.env.num_workers or env.num_workers),
        policy=replace(config.policy, checkpoint=config.policy.checkpoint.replace(SEED, str(seed))),
        reward=replace(config.reward, model=config.reward.model.replace(SEED, str(seed))),
        run=replace(
            config.run,
            root=str(folder_of(config)),
            name=f"seed-{seed}",
            seed=seed,
            threads=config.run.threads or run.threads,
        ),
    )
