"""Is practice worth more than more demonstrations?

    vla-rl compare data metaworld-mt5 --seeds 3 --jobs 2

demonstrations, once: the largest size of each task
-> fine-tuning on the first 1, 2, 5, 10, 20 of each task, evaluated
-> the same on 1, 2 and 5, but shorter: where practice starts
-> practice from there, always the same number of turns, evaluated on the same held-out states
-> data.md, data.json, data.png

Complete parts are not done again: the same command, given again, continues. Everything is evaluated on the same initial
states, and what it cost is counted in simulator steps: those of the demonstrations, and those of practice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vla_rl.config import (
    DemosConfig,
    EnvConfig,
    EvalConfig,
    PolicyConfig,
    SFTConfig,
    TrainConfig,
    UserError,
)
from vla_rl.config.comparison import CompareDataConfig
from vla_rl.config.serialize import differences, to_json
from vla_rl.data.demonstrations import ENVIRONMENT_FILE
from vla_rl.data.lerobot import LeRobotReader
from vla_rl.envs.registry import task_names
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.evaluate import evaluate_checkpoint
from vla_rl.recipes.many_runs import (
    MODES,
    finish_all,
    folder_of,
    is_complete,
    require_same,
    shared_out,
    train_all,
)
from vla_rl.recipes.presets import preset
from vla_rl.recipes.sft import fine_tune
from vla_rl.report.comparison.more_data import Kind, Row, write_more_data
from vla_rl.report.run_data import read_run
from vla_rl.runtime.external import read_json
from vla_rl.runtime.files import require_writable
from vla_rl.runtime.progress import note
from vla_rl.runtime.run_folder import read_config


class FineTuning(NamedTuple):
    """One fine-tuning and how its policy is evaluated."""

    config: SFTConfig
    protocols: tuple[EvalConfig, ...]
    env: EnvConfig


def compare_data(config: CompareDataConfig) -> Path:
    """Do what is still to do, and write the table. Returns its path.

    Raises UserError where a folder holds something else than what is planned, or a part could not be completed, and
    `Stopped`, a KeyboardInterrupt, where a signal ended it.
    """
    base = preset(config.preset)
    if base.policy.checkpoint:
        raise UserError(
            f"compare data: {config.preset} starts from {base.policy.checkpoint}, which has seen its demonstrations: "
            "take a preset that starts from nothing, such as metaworld-mt5"
        )
    out = require_writable(Path(config.out), "folder")
    places = [*_of("fine-tuning", config.sizes), *_of("start", config.practise)]
    tunings: dict[tuple[Kind, int, int], FineTuning] = {
        (kind, size, seed): planned_tuning(config, base, size, seed, start=kind == "start")
        for kind, size in places
        for seed in range(config.seeds)
    }
    runs = {
        (size, seed): planned_practice(config, base, size, seed)
        for size in config.practise
        for seed in range(config.seeds)
    }
    for tuning in tunings.values():
        _require_same_tuning(tuning)
    for run in runs.values():
        require_same(run)
    demos = _demonstrations(config, base.env, out / "demos")
    _tune_all(tunings, config.jobs)
    train_all(
        {f"practice from {size}, seed {s}": run for (size, s), run in runs.items()}, config.jobs
    )
    steps = demonstrated_steps(demos, base.env, config.sizes)
    seeds = range(config.seeds)
    rows = [
        Row(kind, size, steps[size], tuple(read_run(Path(tunings[kind, size, s].config.out)) for s in seeds))
        for kind, size in places
    ]  # fmt: skip
    rows += [
        Row("practice", size, steps[size], tuple(read_run(folder_of(runs[size, s])) for s in seeds))
        for size in config.practise
    ]
    return write_more_data(rows, out, f"{config.preset}: practice and more demonstrations")


def _of(kind: Kind, sizes: Sequence[int]) -> list[tuple[Kind, int]]:
    return [(kind, size) for size in sizes]


# -- what is planned


def planned_tuning(
    config: CompareDataConfig, base: TrainConfig, size: int, seed: int, *, start: bool
) -> FineTuning:
    """Fine-tuning on the first `size` demonstrations of each task; start: the shorter one that practice starts from."""
    out = Path(config.out)
    tuning = SFTConfig(
        dataset=str(out / "demos"),
        episodes_per_task=size,
        out=str(out / f"{'start' if start else 'sft'}-{size}-seed-{seed}"),
        policy=PolicyConfig(
            scratch=base.policy.scratch, kind=base.policy.kind, device=base.policy.device
        ),
        action_chunk=base.env.action_chunk,
        epochs=max(1, round((config.start_episodes if start else config.sft_episodes) / size)),
        validation_fraction=0.0,  # of one demonstration there is none to spare
        seed=seed,
    )
    temperatures = (0.0, base.rollout.temperature)
    protocol = _protocol(config, base)
    return FineTuning(
        tuning,
        tuple(replace(protocol, temperature=temperature) for temperature in temperatures),
        shared_out(base, config.jobs, config.cores).env,
    )


def planned_practice(
    config: CompareDataConfig, base: TrainConfig, size: int, seed: int
) -> TrainConfig:
    """Practice from the policy that was fine-tuned on `size` demonstrations of each task."""
    policy = Path(planned_tuning(config, base, size, seed, start=True).config.out) / "policy"
    planned = replace(
        base,
        policy=replace(base.policy, checkpoint=str(policy)),
        schedule=replace(base.schedule, iterations=config.iterations, minutes=0.0, episodes=0),
        eval=_protocol(config, base),
        run=replace(
            base.run,
            name=f"practice-{size}-seed-{seed}",
            root=config.out,
            seed=seed,
            trackers="none",
        ),
    )
    return shared_out(planned, config.jobs, config.cores)


def _protocol(config: CompareDataConfig, base: TrainConfig) -> EvalConfig:
    return replace(base.eval, episodes_per_task=config.episodes_per_task, videos=0)


def _require_same_tuning(tuning: FineTuning) -> None:
    folder = Path(tuning.config.out)
    if not (folder / "config.json").is_file():
        return
    changed = differences(read_config(folder, SFTConfig), tuning.config)
    if changed:
        settings = ", ".join(
            f"{name} {old!r} (now {new!r})" for name, (old, new) in changed.items()
        )
        raise UserError(
            f"{folder} was fine-tuned with {settings}: give the same settings to go on, or another --out"
        )


# -- what is done


def _demonstrations(config: CompareDataConfig, env: EnvConfig, folder: Path) -> Path:
    """The demonstrations, collected if they are not there. UserError if others are."""
    wanted = max(config.sizes)
    if not (folder / "meta" / "info.json").is_file():
        note(f"{wanted} demonstrations of each task of {env.suite}")
        return collect_demos(DemosConfig(env=env, out=str(folder), episodes_per_task=wanted))
    remedy = f"Remove {folder}, or choose another --out"
    played = read_json(folder / ENVIRONMENT_FILE, inside=folder, remedy=remedy)
    changed = differences(played, to_json(replace(env, num_workers=0)))
    if changed:
        raise UserError(
            f"{folder} holds demonstrations of another environment ({', '.join(changed)}). {remedy}"
        )
    lengths = _episode_lengths(folder)
    fewest = min(map(len, lengths.values()))
    if fewest < wanted or len(lengths) < len(task_names(env.suite)):
        raise UserError(
            f"{folder} holds {fewest} demonstrations of each of {len(lengths)} tasks, expected {wanted} of each of "
            f"{len(task_names(env.suite))}. {remedy}"
        )
    return folder


def _episode_lengths(folder: Path) -> dict[str, list[int]]:
    """Frames of every demonstration by its instruction, in the order in which they were kept."""
    reader = LeRobotReader(folder)
    tasks, lengths = reader.task_positions(), {}
    for episode in reader.episodes:
        lengths.setdefault(reader.tasks[tasks[episode.first_frame]], []).append(episode.length)
    return lengths


def demonstrated_steps(folder: Path, env: EnvConfig, sizes: tuple[int, ...]) -> dict[int, int]:
    """Simulator steps of the first demonstrations of each task, for each size; an action is held for several."""
    lengths = _episode_lengths(folder).values()
    return {
        size: env.action_repeat * int(np.sum([sum(own[:size]) for own in lengths]))
        for size in sizes
    }


def _tune_all(tunings: dict[tuple[Kind, int, int], FineTuning], jobs: int) -> None:
    labels = {f"{kind} on {size}, seed {seed}": t for (kind, size, seed), t in tunings.items()}
    waiting = {label: t for label, t in labels.items() if not _tuned(t)}
    note(f"{len(labels)} fine-tunings, {len(labels) - len(waiting)} of them complete")
    finish_all(
        {label: (tune_one, (tuning,)) for label, tuning in waiting.items()},
        lambda label: _tuned(labels[label]),
        jobs,
        of=len(labels),
    )


def _tuned(tuning: FineTuning) -> bool:
    return is_complete(Path(tuning.config.out))


def tune_one(tuning: FineTuning) -> None:
    """One fine-tuning and its evaluations, in a process of its own."""
    folder = Path(tuning.config.out)
    if not (folder / "policy" / "config.json").is_file():
        fine_tune(tuning.config)
    for mode, protocol in zip(MODES, tuning.protocols, strict=True):
        file = folder / "eval" / f"after-{mode}.json"
        if not file.is_file():
            evaluate_checkpoint(folder / "policy", protocol, tuning.env, file)
