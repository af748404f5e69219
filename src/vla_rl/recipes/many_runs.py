"""Many training runs of one study: complete ones are not done again, stopped ones go on, several at a time.

A study plans its runs, each with a folder of its own; the same plan, given again, continues. What a folder holds must
be what is planned: runs with other settings would be compared as if they were alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_rl.config import TrainConfig, UserError
from vla_rl.config.serialize import differences
from vla_rl.policies.registry import family_of
from vla_rl.recipes.group_practice import without_critic
from vla_rl.report.comparison.study import DIVERGED
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.runtime.child_pool import ChildPool
from vla_rl.runtime.children import ChildLostError
from vla_rl.runtime.cpus import available_cpus
from vla_rl.runtime.files import write_text
from vla_rl.runtime.hub import hub_id
from vla_rl.runtime.locate import locate_policy
from vla_rl.runtime.progress import note
from vla_rl.runtime.run_folder import read_config
from vla_rl.runtime.signals import Stopped, graceful_stop

MODES = ("greedy", "sampled")
Job = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function that can be imported by name, and its arguments."""


def shared_out(config: TrainConfig, parallel: int, cores: int = 0) -> TrainConfig:
    """`config` with its part of the machine where `parallel` runs go on at a time; 0 cores are shared out evenly.

    It changes nothing in what is learned.
    """
    cores = cores or max(1, available_cpus() // parallel)
    return replace(
        config,
        env=replace(config.env, num_workers=min(cores, config.env.num_envs)),
        run=replace(config.run, threads=cores),
    )


def folder_of(config: TrainConfig) -> Path:
    """Where a planned run lies."""
    return Path(config.run.root) / config.run.name


def is_complete(run: Path) -> bool:
    """Whether a run has come to its end and was evaluated."""
    return all((run / "eval" / f"after-{mode}.json").is_file() for mode in MODES)


def require_same(run: TrainConfig) -> None:
    """UserError if the folder of this run holds one with other settings: they would be compared as if alike."""
    folder = folder_of(run)
    if not (folder / "config.json").is_file():
        return
    before = read_config(folder, TrainConfig)
    if before.compares_groups and run.compares_groups:  # which save what they play with
        before, run = without_critic(before), without_critic(run)
    found = differences(before, run)
    # how the work is shared out may change from one sitting to the next
    changed = {
        name: v for name, v in found.items() if name not in ("env.num_workers", "run.threads")
    }
    if changed:
        settings = ", ".join(
            f"{name} {old!r} (now {new!r})" for name, (old, new) in changed.items()
        )
        raise UserError(
            f"{folder} was trained with {settings}: give the same settings to go on, or another folder"
        )


def require_starts(runs: Iterable[TrainConfig]) -> None:
    """UserError where a policy or reward model that runs begin with is not there, or is damaged: said once, at once."""
    runs = list(runs)
    for checkpoint in {run.policy.checkpoint for run in runs} - {""}:
        if hub_id(Path(checkpoint)) is not None:
            continue
        folder, _ = locate_policy(Path(checkpoint))
        for finding in family_of(folder).examine(str(folder)):
            if finding.status == "fail":
                raise UserError(f"{checkpoint}: {finding.found}")
    for folder in {run.reward.model for run in runs} - {""}:
        load_reward_model(folder)


def train_all(runs: Mapping[str, TrainConfig], parallel: int) -> None:
    """Do every run that is still to do, `parallel` at a time; `runs` by what they are called in notes.

    Raises UserError where a folder holds another run than planned, before anything is done, and where a run could not
    be completed, and `Stopped`, a KeyboardInterrupt, where a signal ended them.
    """
    for run in runs.values():
        require_same(run)
    waiting = {label: run for label, run in runs.items() if not is_complete(folder_of(run))}
    require_starts(waiting.values())
    note(f"{len(runs)} runs, {len(runs) - len(waiting)} of them complete")
    finish_all(
        {label: (train_one, (run,)) for label, run in waiting.items()},
        lambda label: is_complete(folder_of(runs[label])),
        parallel,
        of=len(runs),
        remark=lambda label: _remark(folder_of(runs[label])),
    )


def finish_all(
    jobs: Mapping[str, Job],
    done: Callable[[str], bool],
    parallel: int,
    *,
    of: int,
    remark: Callable[[str], str] = lambda _: "",
) -> None:
    """Call each job's function with its arguments in a process of its own, and see that `done(label)` holds then.

    of: the jobs of the whole study, those among them that were done before. remark: what else is to be said of a job
    that is done. Raises as `train_all` does.
    """
    # a process for each: nothing of one run's memory or threads is left to the next
    with (
        ChildPool(parallel, reuse=False, keep_stderr=False) as pool,
        graceful_stop("the current iteration of each run", pool.pass_on) as stop,
    ):
        begun = {pool.submit(call, *given): label for label, (call, given) in jobs.items()}
        failed: dict[str, str] = {}
        for job in as_completed(begun):
            label = begun[job]
            try:
                with suppress(Stopped):
                    job.result()
            except (UserError, ChildLostError) as error:  # the others go on
                failed[label] = str(error)
                note(f"{label}: {error}")
                continue
            note(f"{label}: {(remark(label) or 'done') if done(label) else 'stopped'}")
        left = [label for label in jobs if label in failed or not done(label)]
        if left:
            told = f"{len(left)} of {of} runs are not complete"
            stop.end(f"{told}; the same command goes on with them")
            why = next((f": {label}: {error}" for label, error in failed.items()), "")
            raise UserError(f"{told}{why}. The same command goes on with what is left")


def diverged(runs: Iterable[TrainConfig]) -> int:
    """How many of `runs` diverged."""
    return sum((folder_of(run) / DIVERGED).is_file() for run in runs)


def _remark(folder: Path) -> str:
    if (folder / DIVERGED).is_file():
        return "diverged; what it had last saved is compared"
    return ""


def train_one(config: TrainConfig) -> None:
    """One run, in a process of its own. Diverging is a result as well."""
    from vla_rl.algorithms.learner import TrainingDivergedError
    from vla_rl.recipes.ranks import train_on_ranks

    folder = folder_of(config)
    try:
        if (folder / "config.json").is_file():
            saved = read_config(folder, TrainConfig)
            train_on_ranks(_with_part_of(saved, config), folder)
        else:
            train_on_ranks(config)
        (folder / DIVERGED).unlink(missing_ok=True)
    except TrainingDivergedError as error:
        write_text(folder / DIVERGED, f"{error}\n")
        _evaluate_last_good(config)


def _with_part_of(saved: TrainConfig, planned: TrainConfig) -> TrainConfig:
    """The run as it was begun, with the part of the machine that it gets in this sitting."""
    return replace(
        saved,
        env=replace(saved.env, num_workers=planned.env.num_workers),
        run=replace(saved.run, threads=planned.run.threads),
    )


def _evaluate_last_good(config: TrainConfig) -> None:
    """What a run that diverged had last saved stands for it, or else what it started from."""
    from vla_rl.recipes.evaluate import evaluate_checkpoint

    folder = folder_of(config)
    saved = any((folder / "checkpoints").glob("iteration-*/policy"))
    if not saved and not config.policy.checkpoint:  # random weights, which were evaluated
        for mode in MODES:
            before = (folder / "eval" / f"before-{mode}.json").read_text(encoding="utf-8")
            write_text(folder / "eval" / f"after-{mode}.json", before)
        return
    policy = folder if saved else Path(config.policy.checkpoint)
    for mode, temperature in zip(MODES, (0.0, config.rollout.temperature), strict=True):
        evaluate_checkpoint(
            policy,
            replace(config.eval, temperature=temperature),
            config.env,
            folder / "eval" / f"after-{mode}.json",
            policy_config=config.policy,
        )
