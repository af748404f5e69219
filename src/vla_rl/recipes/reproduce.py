"""The first day with one GPU and a published checkpoint: is its figure reached here, and if not, why not?

    the machine      what `vla-rl doctor` finds
    the checkpoint   fetched from the hub or found in a folder, and looked through
    evaluation       by the published protocol, each (task, initial state) once
    comparison       does the published figure lie within the interval?
    causes           if not: the known causes one by one, each with its evidence
    practice         an iteration of PPO, and how long the whole recipe would take

    vla-rl reproduce libero-spatial
    vla-rl reproduce libero-spatial --episodes-per-task 5 --demos datasets/libero_spatial

What is done stays in the folder, and the same command goes on. The result is report.txt and report.json there.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vla_rl.config import EvalConfig, UserError
from vla_rl.config.reproduce import ReproduceConfig
from vla_rl.config.serialize import differences, to_json
from vla_rl.data.demonstrations import Demonstrations
from vla_rl.diagnostics.checkpoint import examine_checkpoint
from vla_rl.diagnostics.machine import Check, doctor, healthy
from vla_rl.diagnostics.reproduction.card import Card, Figure, write_card
from vla_rl.diagnostics.reproduction.causes import in_words
from vla_rl.diagnostics.reproduction.demonstrated import (
    Likelihoods,
    demonstrations_of,
    statistics_of,
)
from vla_rl.diagnostics.reproduction.diagnose import Diagnosis, Finding, Search, within
from vla_rl.diagnostics.reproduction.episodes import Journal, Outcomes, Player, Rate, rate_of
from vla_rl.diagnostics.reproduction.protocol import Protocol, checkpoint_of, protocol_of
from vla_rl.diagnostics.reproduction.scenes import check_scene
from vla_rl.diagnostics.reproduction.settings import (
    Settings,
    env_of,
    other_statistics,
    understood,
)
from vla_rl.diagnostics.reproduction.words import report_text
from vla_rl.envs.registry import task_names
from vla_rl.evaluation.result import evaluation_specs
from vla_rl.policies.action_tokens import select_statistics
from vla_rl.policies.openvla_oft.twin import other_class
from vla_rl.recipes.reproduce_practice import Ready, practise, preset_of
from vla_rl.runtime import external
from vla_rl.runtime.files import cannot_write, read_json, require_writable, write_json, write_text
from vla_rl.runtime.lock import FolderLock
from vla_rl.runtime.memory import keep_freed_memory
from vla_rl.runtime.progress import note
from vla_rl.runtime.signals import Stopped
from vla_rl.types import EpisodeSpec

REQUEST = "request.json"
MACHINE = "machine.json"
REPORT = "report"
FREE = ("out", "workers", "practice_iterations", "trial_episodes", "preset")
"""What may differ where a reproduction goes on: it changes nothing that was played."""


def reproduce(config: ReproduceConfig) -> dict[str, Any]:
    """Do all steps that are still to do; returns the report as JSON values, which is in the folder as well.

    UserError where the folder cannot be used or holds another reproduction, where machine or checkpoint are not in
    order, and where nothing says what is to be reproduced.
    """
    task_names(config.suite)
    checkpoint = checkpoint_of(config)
    preset_of(config, "")
    if config.demos is not None and not config.demos.exists():
        raise UserError(f"there are no demonstrations at {config.demos}")
    name = re.sub(r"[^\w.-]+", "-", f"reproduce-{config.suite}")
    out = require_writable(Path(config.out or f"runs/{name}"), "folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(cannot_write(out, error)) from error
    lock = FolderLock(out)
    try:
        _begin(config, out)
        checks = _machine(checkpoint, out)
        found, ready = _evaluated(config, checkpoint, out)
        _free_memory()
        found["machine"] = [asdict(check) for check in checks]
        _written(found, out)  # whatever becomes of the practice
        note("4/4 practice")
        found["practice"] = practise(config, ready, out)
        return _written(found, out)
    except Stopped as stopped:
        raise Stopped(
            stopped.number, f"stopped by {stopped.signal_name}; the same reproduce command goes on"
        ) from stopped
    finally:
        lock.release()


@dataclass(frozen=True)
class _Machine:
    checks: tuple[Check, ...]


def _begin(config: ReproduceConfig, out: Path) -> None:
    """Note what is asked for. UserError where the folder holds a reproduction of something else."""
    asked = {name: value for name, value in to_json(config).items() if name not in FREE}
    file = out / REQUEST
    before = read_json(file) if file.is_file() else asked
    different = [
        f"--{name.replace('_', '-')} {old!r}"
        for name, (old, _) in differences(before, asked).items()
    ]
    # more episodes are played on top of those that are there
    different = [one for one in different if not one.startswith("--episodes-per-task")]
    if different:
        raise UserError(
            f"{out} holds a reproduction with {', '.join(different)}: give the same to go on with it, or another --out"
        )
    write_json(file, asked)


def _machine(checkpoint: str, out: Path) -> list[Check]:
    """What is wrong with machine and checkpoint. UserError for what would keep an evaluation from running."""
    file = out / MACHINE
    if file.is_file():
        return list(external.read_json(file, _Machine, remedy="Remove it.").checks)
    note("1/4 machine and checkpoint")
    checks = [*doctor(out), *examine_checkpoint(checkpoint)]
    if not healthy(checks):
        failed = "; ".join(f"{c.name}: {c.found} -> {c.mend}" for c in checks if c.status == "fail")
        raise UserError(f"this machine or the checkpoint is not in order: {failed}")
    write_json(file, {"checks": [asdict(check) for check in checks]})
    return checks


def _evaluated(config: ReproduceConfig, checkpoint: str, out: Path) -> tuple[dict[str, Any], Ready]:
    """Evaluation, comparison and diagnosis as JSON values; and the checkpoint as it is practised."""
    keep_freed_memory()
    protocol = protocol_of(config)
    _require_same_weights(protocol, out)
    journal = Journal(out / "episodes.jsonl")
    player = Player(protocol.policy, protocol.env, journal, seed=config.seed)
    per_task = config.episodes_per_task or (
        protocol.card.episodes_per_task if protocol.card is not None else None
    )
    specs = evaluation_specs(
        protocol.env, EvalConfig(episodes_per_task=per_task), task_names(config.suite)
    )
    note(f"2/4 evaluation: {len(specs)} episodes")
    outcomes = player.outcomes(protocol.played, specs, "evaluate")
    rate, settings = rate_of(outcomes), protocol.played
    found: dict[str, Any] = {
        "suite": config.suite,
        "checkpoint": checkpoint,
        "played": asdict(protocol.played),
        "protocol": asdict(protocol.settings),
        "deviations": protocol.played.changed_from(protocol.settings),
        "evaluation": _result(outcomes),
        "published": None,
    }
    if protocol.figure is None:
        _publish(config, protocol, rate, len(specs))
        return found, _ready(config, checkpoint, protocol, player, settings)
    found["published"] = asdict(protocol.figure)
    found["within"] = within(protocol.figure.success_rate, rate)
    if not found["within"]:
        note("3/4 causes")
        diagnosis = _search(config, protocol, player, specs, out)
        settings = diagnosis.corrected
        found["diagnosis"] = _told(diagnosis, protocol)
    return found, _ready(config, checkpoint, protocol, player, settings)


def _ready(
    config: ReproduceConfig, checkpoint: str, protocol: Protocol, player: Player, settings: Settings
) -> Ready:
    """What is practised: the checkpoint by the settings that are right as far as is known."""
    policy = understood(protocol.policy, settings, player.statistics)
    known = settings.statistics in protocol.policy.description.norm_stats
    preset = protocol.card.preset if protocol.card is not None else ""
    return Ready(
        preset_of(config, preset),
        checkpoint,
        env_of(protocol.env, settings, policy),
        settings,
        settings.statistics if known else "",
    )


def _search(
    config: ReproduceConfig,
    protocol: Protocol,
    player: Player,
    specs: Sequence[EpisodeSpec],
    out: Path,
) -> Diagnosis:
    """Settings first, then what no setting is: the simulator."""
    assert protocol.figure is not None
    demos = _demonstrations(config, protocol, out)
    extra = other_statistics(protocol.policy.description)
    extra |= statistics_of(demos) if demos is not None else {}
    likelihoods = Likelihoods(protocol.policy, demos, extra) if demos is not None else None
    player.statistics = extra
    other = other_class(protocol.policy)
    kinds = [protocol.policy.kind, *([other.kind] if other is not None else [])]
    search = Search(
        player,
        specs,
        protocol.figure.success_rate,
        protocol.settings,
        config.trial_episodes,
        likelihoods,
        kinds,
        _statistics_of_size(protocol, extra),
    )
    diagnosis = search.find(protocol.played)
    diagnosis.findings.append(_scene(config.suite))
    return diagnosis


def _scene(suite: str) -> Finding:
    """What the simulator's own test says: mujoco's version, and drawing."""
    check = check_scene(suite)
    if check is None:
        return Finding("mujoco", "not tested", [f"no scene of {suite} is recorded"])
    return Finding("mujoco", "cleared" if check.is_same else "suspected", [str(check)])


def _statistics_of_size(protocol: Protocol, extra: dict[str, Any]) -> list[str]:
    """Names of all statistics of the action's size, the checkpoint's own first."""
    known = {**protocol.policy.description.norm_stats, **extra}
    size = protocol.policy.action_dim
    return [name for name in known if select_statistics(known, name)[1].q01.size == size]


def _demonstrations(
    config: ReproduceConfig, protocol: Protocol, out: Path
) -> Demonstrations | None:
    """The demonstrations that were given, LIBERO's official files converted first."""
    if config.demos is None:
        return None
    folder = config.demos
    if folder.is_file() or (folder.is_dir() and any(folder.rglob("*.hdf5"))):
        converted = out / "demos"
        if not converted.is_dir():
            from vla_rl.data.libero_hdf5 import convert_libero_hdf5

            convert_libero_hdf5(folder, converted)
        folder = converted
    return demonstrations_of(folder, config.suite, protocol.policy.action_dim)


def _require_same_weights(protocol: Protocol, out: Path) -> None:
    """UserError where the checkpoint in its place is not the one whose episodes are in the folder."""
    file, found = out / "checkpoint.json", protocol.policy.fingerprint()
    if file.is_file() and read_json(file).get("fingerprint") != found:
        raise UserError(
            f"{out} holds episodes of another checkpoint than {protocol.folder} is now: give another --out"
        )
    write_json(file, {"fingerprint": found})


def _publish(config: ReproduceConfig, protocol: Protocol, rate: Rate, episodes: int) -> None:
    """Write the card beside the checkpoint."""
    figure = Figure(
        rate.share, f"measured with vla-rl reproduce {config.suite} --publish", episodes
    )
    per_task = episodes // len(task_names(config.suite))
    env = replace(
        protocol.env, num_workers=0, horizon=protocol.played.horizon,
        settle_steps=protocol.played.settle_steps,
    )  # fmt: skip
    card = Card(figure, env, protocol.played, per_task, config.preset)
    note(f"Card: {write_card(protocol.folder, card)}")


def _result(outcomes: Outcomes) -> dict[str, Any]:
    by_task: dict[str, Outcomes] = {}
    for spec, outcome in outcomes.items():
        by_task.setdefault(spec.task, {})[spec] = outcome
    return _rate(rate_of(outcomes)) | {
        "tasks": {task: _rate(rate_of(own)) for task, own in by_task.items()}
    }


def _rate(rate: Rate) -> dict[str, Any]:
    return {
        "successes": rate.successes,
        "episodes": rate.episodes,
        "success_rate": rate.share,
        "interval": list(rate.interval),
    }


def _told(diagnosis: Diagnosis, protocol: Protocol) -> dict[str, Any]:
    """A diagnosis as JSON values."""
    assert protocol.figure is not None
    corrected = None
    if diagnosis.corrected != protocol.played:
        corrected = _rate(diagnosis.rate) | {
            "settings": asdict(diagnosis.corrected),
            "words": in_words(diagnosis.corrected, protocol.played),
            "within": within(protocol.figure.success_rate, diagnosis.rate),
        }
    return {"findings": [asdict(one) for one in diagnosis.findings], "corrected": corrected}


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _written(found: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write both reports; the values come back with the text."""
    text = report_text(found)
    write_json(out / f"{REPORT}.json", found)
    write_text(out / f"{REPORT}.txt", text)
    return found | {"text": text, "folder": str(out)}
