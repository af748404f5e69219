"""What `vla-rl train` and `vla-rl ablate` are asked for: presets, changes to them, runs to go on with."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from vla_rl.cli.arguments import PlanArguments
from vla_rl.cli.options import (
    PRINT_CONFIG,
    ParseCommand,
    normal,
    old_options,
    value_of,
    with_lora,
)
from vla_rl.config import AblationConfig, TrainConfig, UserError

RESUMABLE = ("--schedule.iterations", "--schedule.minutes", "--schedule.episodes")
_TRACKERS = ("--run.trackers",)
_ELSEWHERE = _TRACKERS + tuple(
    f"--parallel.{name}"
    for name in (
        *(
            "ranks",
            "timeout",
            "shard",
            "gather",
            "arrangement",
            "learners",
            "actors",
            "hosts",
            "ray",
        ),
    )
)
"""What may differ where a run goes on: it plays the same."""
DEFAULT_PRESET = "metaworld-mt5"
MAX_SEEDS = 1000
ARRANGED = tuple(
    f"--parallel.{name}"
    for name in ("ranks", "shard", "arrangement", "learners", "actors", "hosts", "ray", "staleness")
)
"""What a plan says itself."""


def train_request(words: list[str], parse_command: ParseCommand) -> tuple[TrainConfig, Path | None]:
    """The configuration `vla-rl train WORDS` asks for, and the run folder to go on in, if any."""
    from vla_rl.recipes.presets import preset

    resume, words = _take_value(words, "--resume")
    chosen = words[0] if words and not words[0].startswith("-") else None
    words = words[1:] if chosen else words
    if resume is not None:
        from vla_rl.runtime.run_folder import training_run

        run = training_run(Path(resume))
        return _resumed(run, chosen, words, parse_command), run
    base, words = with_lora(preset(chosen or DEFAULT_PRESET), words)
    notes = (
        f"To go on with a run: vla-rl train --resume RUN\n"
        f"  with a new length: [{'] ['.join(RESUMABLE)}]\n"
        "  with other trackers: [--run.trackers]\n"
        "  on another number of processes: [--parallel.ranks], or in pools: [--parallel.arrangement], ...\n\n"
        "For several seeds, compared at the end: vla-rl train PRESET --seeds N\n"
        "  so many runs at a time: [--jobs M]\n"
        "  with a checkpoint or reward model of its own for each: runs/seed-{seed}/sft/policy\n"
        "  the same command goes on with what is not complete\n\n"
        f"{_presets()}"
    )
    config = parse_command(TrainConfig, words, "train", base, notes)
    if not config.run.name:
        name = f"{chosen or DEFAULT_PRESET}-{datetime.now():%Y%m%d-%H%M%S}"
        config = replace(config, run=replace(config.run, name=name))
    return config, None


class SeedsRequest(NamedTuple):
    """How many seeds, and how many runs at a time."""

    seeds: int
    jobs: int


def seeds_request(words: list[str]) -> tuple[SeedsRequest | None, list[str]]:
    """What `--seeds N` and `--jobs M` ask for, if they are there, and the other words of `vla-rl train`.

    The runs need a name that the same command gives again: without --run.name it is the preset's.
    """
    seeds, rest = _take_value(words, "--seeds", "how many runs, each with a seed of its own")
    jobs, rest = _take_value(rest, "--jobs", "how many runs at a time")
    if seeds is None:
        if jobs is not None:
            raise UserError("train: --jobs has no effect: it counts with --seeds only")
        return None, words
    if _take_value(rest, "--resume")[0] is not None:
        raise UserError("train: --resume goes on with one run; with --seeds the same command does")
    request = SeedsRequest(_count("--seeds", seeds), _count("--jobs", jobs or "1"))
    if value_of("--run.name", rest) is None:
        chosen = rest[0] if rest and not rest[0].startswith("-") else DEFAULT_PRESET
        rest = [*rest, "--run.name", f"{chosen}-seeds"]
    return request, rest


def _count(option: str, word: str) -> int:
    number = int(word) if word.isascii() and word.isdigit() and len(word) < 6 else 0
    if not 1 <= number <= MAX_SEEDS:
        raise UserError(
            f"train: {option}: expected a whole number from 1 to {MAX_SEEDS}, got {word!r}"
        )
    return number


def _presets() -> str:
    """The part of the help about presets."""
    from vla_rl.recipes.presets import SUMMARIES

    presets = "\n".join(f"  {name:<32} {summary}" for name, summary in SUMMARIES.items())
    return (
        f"Presets (default {DEFAULT_PRESET}); the options' defaults below are the chosen one's:\n{presets}\n\n"
        "--policy.lora trains adapters only; --policy.lora.{rank,alpha,dropout,vision} set them."
    )


def plan_request(
    words: list[str], parse_command: ParseCommand
) -> tuple[PlanArguments, TrainConfig, str, list[str]]:
    """What `vla-rl plan WORDS` asks for, the run in it, the preset, and the words that are `vla-rl train`'s."""
    from vla_rl.recipes.presets import preset

    chosen = words[0] if words and not words[0].startswith("-") else None
    if chosen and Path(chosen).is_dir():
        raise UserError(
            f"plan: {chosen} is a folder, expected a preset. To plan with what was measured in a run: "
            f"vla-rl plan {DEFAULT_PRESET} --costs {chosen}"
        )
    words = words[1:] if chosen else words
    base, rest = with_lora(preset(chosen or DEFAULT_PRESET), words)
    parts = {entry.name: getattr(base, entry.name) for entry in fields(TrainConfig)}
    request = parse_command(PlanArguments, rest, "plan", PlanArguments(**parts), _presets())
    config = TrainConfig(**{name: getattr(request, name) for name in parts})
    return request, config, chosen or DEFAULT_PRESET, _of_training(words)


def _of_training(words: list[str]) -> list[str]:
    """`words` without the options that `vla-rl train` does not have, and without what belongs to them."""
    own = {entry.name for entry in fields(PlanArguments)} - {e.name for e in fields(TrainConfig)}
    names = {f"--{name}".replace("_", "-") for name in own} | {PRINT_CONFIG, *ARRANGED}
    kept, skipping = [], False
    for word in words:
        if word.startswith("--"):
            skipping = normal(word) in names
        if not skipping:
            kept.append(word)
    return kept


def _resumed(
    folder: Path, chosen: str | None, words: list[str], parse_command: ParseCommand
) -> TrainConfig:
    from vla_rl.runtime.run_folder import read_config

    if chosen:
        raise UserError(f"--resume goes on with the run's own configuration: leave out {chosen!r}")
    config = read_config(folder, TrainConfig)
    old, allowed = (
        old_options(TrainConfig, config),
        (*RESUMABLE, *_ELSEWHERE, PRINT_CONFIG, "--help"),
    )
    for word in words:
        option = normal(word)
        if option.startswith("--") and old.get(option, option) not in allowed:
            raise UserError(
                f"{option} cannot change in a resumed run, only {', '.join((*RESUMABLE, *_ELSEWHERE))} can: "
                "start a new run for it"
            )
    return parse_command(TrainConfig, words, "train", config)


def _take_value(
    words: list[str], option: str, needs: str = "the folder of the run to go on with"
) -> tuple[str | None, list[str]]:
    """Take `option VALUE` or `option=VALUE` out of `words`."""
    for at, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2], words[:at] + words[at + 1 :]
        if word == option:
            if at + 1 == len(words) or words[at + 1].startswith("-"):
                raise UserError(f"{option} needs a value: {needs}")
            return words[at + 1], words[:at] + words[at + 2 :]
    return None, words


def ablation_request(words: list[str], parse_command: ParseCommand) -> AblationConfig:
    """What `vla-rl ablate [PRESET] WORDS` asks for."""
    chosen = words[0] if words and not words[0].startswith("-") else None
    base = AblationConfig(preset=chosen) if chosen else AblationConfig()
    return parse_command(AblationConfig, words[1:] if chosen else words, "ablate", base)
