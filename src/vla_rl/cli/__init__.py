"""The command line: `vla-rl {quickstart, demos, convert, sft, train, eval, export, report, doctor}`.

A user's mistake is one line on standard error and exit code 2. Nothing heavy is imported before a command
needs it: simulator processes import this module too.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from vla_rl import __version__
from vla_rl.cli.options import normal, parse, say, value_of, with_lora
from vla_rl.config import (
    DemosConfig,
    EnvConfig,
    EvalConfig,
    ExportConfig,
    PolicyConfig,
    SFTConfig,
    TrainConfig,
    UserError,
    nearest,
)
from vla_rl.config.training import QuickstartConfig

C = TypeVar("C")

RESUMABLE = ("--ppo.iterations", "--ppo.minutes")
DEFAULT_PRESET = "metaworld-mt5"


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it, whether or not there was time to save."""


@dataclass(frozen=True)
class EvalArguments:
    """Evaluate a policy: each (task, initial state) exactly once, with a confidence interval."""

    checkpoint: Path
    """A run folder, one of its checkpoints, a policy folder, or a hub id (owner/name)."""
    protocol: EvalConfig = field(default_factory=EvalConfig)
    horizon: int = 0
    """Turns after which an episode is cut; 0 takes the training run's, or the benchmark's protocol."""
    unnorm_key: str = ""
    """Dataset whose action statistics un-normalise actions; empty takes the checkpoint's own, or the suite's."""
    base: str = ""
    """Folder or hub id of the model that adapters belong to, where it is not the one they name themselves."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights."""
    json: Path | None = None
    """File for the whole result."""
    videos_out: Path | None = None
    """Folder for the videos; by default `videos` beside the JSON file."""
    workers: int = 0
    """Simulator processes; 0 takes one per CPU core. The result does not depend on it."""


@dataclass(frozen=True)
class ConvertArguments:
    """Convert LIBERO's official HDF5 demonstrations into a LeRobotDataset v3."""

    source: Path
    """An HDF5 file, or a folder of them; subfolders are searched too."""
    out: Path = Path("runs/demos")
    """Folder of the dataset to write; must not exist yet."""
    drop_noops: bool = True
    """Leave out frames in which nothing is moved, as OpenVLA does."""
    image_size: int = 0
    """Height and width of the pictures; 0 keeps those stored (128)."""
    wrist: bool = False
    """Also write the wrist camera."""
    image_format: Literal["png", "mp4"] = "png"


@dataclass(frozen=True)
class ReportArguments:
    """Write a run's report: one HTML file that opens offline."""

    run: Path
    """A run folder."""
    out: Path | None = None
    """The file; by default report.html in the run folder."""


@dataclass(frozen=True)
class DoctorArguments:
    """Look for what would keep VLA-RL from running here, and say how to mend it."""

    json: bool = False
    """Print the findings as JSON."""
    checkpoint: str = ""
    """Look at this checkpoint (a folder, a run or a hub id) instead: what is in it, whether it is whole, and whether
    this machine can run and train it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (failed), 2 (a user's mistake) or 130 (Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("VLA_RL_DEBUG", "") not in ("", "0")
    arguments = [word for word in arguments if word != "--debug"]
    try:
        return _dispatch(arguments, debug)
    except KeyboardInterrupt:
        if debug:
            raise
        return _say("stopped at once; what was saved before is whole", INTERRUPTED)
    except UserError as error:
        if debug:
            raise
        return _say(str(error), 2)
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return _say(f"cannot write {error.filename or 'to the disk'}: {error.strerror}", 2)


def _say(message: str, code: int) -> int:
    print(f"vla-rl: {' '.join(message.split())}", file=sys.stderr)
    return code


def _dispatch(arguments: list[str], debug: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(_overview())
        return 0
    name, *rest = arguments
    if name in ("-V", "--version"):
        say(f"vla-rl {__version__}")
        return 0
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        known = [*COMMANDS, "--help", "--version"]
        raise UserError(f"there is no {kind} {name!r}.{nearest(name, known)}")
    from vla_rl.runtime.progress import set_up_logging

    set_up_logging(logging.DEBUG if debug else logging.INFO)
    return COMMANDS[name].run(rest)


# --------------------------------------------------------------------------------------------------
# The commands


def _quickstart(words: list[str]) -> int:
    config = _parse(QuickstartConfig, words, "quickstart")
    from vla_rl.recipes.quickstart import quickstart

    return 0 if quickstart(config) else INTERRUPTED


def _demos(words: list[str]) -> int:
    from vla_rl.recipes.protocols import laptop_env

    suite = value_of("--env.suite", words) or EnvConfig().suite
    config = _parse(DemosConfig, words, "demos", DemosConfig(env=laptop_env(suite)))
    from vla_rl.recipes.demos import collect_demos

    say(f"Demonstrations: {collect_demos(config)}")
    return 0


def _convert(words: list[str]) -> int:
    request = _parse(ConvertArguments, words, "convert")
    from vla_rl.data.libero_hdf5 import convert_libero_hdf5

    folder = convert_libero_hdf5(
        request.source,
        request.out,
        drop_noops=request.drop_noops,
        image_size=request.image_size,
        wrist=request.wrist,
        image_format=request.image_format,
    )
    say(f"Demonstrations: {folder}")
    return 0


def _sft(words: list[str]) -> int:
    base, words = with_lora(SFTConfig(), words)
    config = _parse(SFTConfig, words, "sft", base)
    from vla_rl.recipes.sft import fine_tune

    say(f"Fine-tuned policy: {fine_tune(config)}")
    return 0


def _train(words: list[str]) -> int:
    config, resume = train_request(words)
    from vla_rl.recipes.train_ppo import train

    say(f"Run folder: {train(config, resume)}")
    return 0


def _eval(words: list[str]) -> int:
    request = _parse(EvalArguments, words, "eval")
    videos = request.videos_out
    if videos is None and request.protocol.videos > 0:
        videos = (request.json.parent if request.json else Path()) / "videos"
    from vla_rl.recipes.evaluate import evaluate_checkpoint

    result = evaluate_checkpoint(
        request.checkpoint,
        request.protocol,
        None,
        request.json,
        videos,
        request.workers,
        PolicyConfig(unnorm_key=request.unnorm_key, base=request.base, dtype=request.dtype),
        request.horizon,
    )
    say(_result_table(result))
    return 0


def _export(words: list[str]) -> int:
    config = _parse(ExportConfig, words, "export")
    from vla_rl.recipes.export import export

    say(f"Exported: {export(config)}")
    return 0


def _report(words: list[str]) -> int:
    request = _parse(ReportArguments, words, "report")
    from vla_rl.report.html import write_report

    say(f"Report: {write_report(request.run, request.out)}")
    return 0


def _doctor(words: list[str]) -> int:
    request = _parse(DoctorArguments, words, "doctor")
    from vla_rl.recipes.doctor import doctor, format_checks, healthy

    if request.checkpoint:
        from vla_rl.recipes.checkpoint_doctor import examine_checkpoint

        checks = examine_checkpoint(request.checkpoint)
    else:
        checks = doctor()
    if request.json:
        say(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        say(format_checks(checks))
    return 0 if healthy(checks) else 1


class Command(NamedTuple):
    """What a command does, in a line, how it is called, and the function that does it."""

    summary: str
    examples: tuple[str, ...]
    run: Callable[[list[str]], int]


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        "the whole job: demonstrations, fine-tuning, PPO, evaluation, report",
        ("vla-rl quickstart", "vla-rl quickstart --minutes 30 --preset metaworld-mt10 --out runs/mt10"),
        _quickstart,
    ),
    "demos": Command(
        "collect expert demonstrations as a LeRobotDataset v3",
        (
            "vla-rl demos --env.suite mt5 --episodes-per-task 5 --out runs/demos",
            "vla-rl demos --env.suite libero-object --episodes-per-task 10 --out runs/libero-demos",
        ),
        _demos,
    ),
    "convert": Command(
        "convert LIBERO's official demonstrations into a LeRobotDataset v3",
        ("vla-rl convert datasets/libero_spatial --out runs/libero-spatial --image-size 224",),
        _convert,
    ),
    "sft": Command(
        "fine-tune a policy on demonstrations",
        ("vla-rl sft --dataset runs/demos --out runs/sft",),
        _sft,
    ),
    "train": Command(
        "improve a policy by online PPO",
        (
            "vla-rl train metaworld-mt5 --policy.checkpoint runs/sft/policy --run.name first",
            "vla-rl train metaworld-mt5 --policy.checkpoint runs/sft/policy --ppo.learning-rate 1e-4",
            "vla-rl train --resume runs/first --ppo.iterations 120",
        ),
        _train,
    ),
    "eval": Command(
        "evaluate a policy on held-out initial states",
        (
            "vla-rl eval runs/first --suite mt5 --episodes-per-task 30 --json result.json",
            "vla-rl eval runs/sft/policy --temperature 1 --videos 2",
            "vla-rl eval openvla/openvla-7b-finetuned-libero-spatial --suite libero-spatial",
        ),
        _eval,
    ),
    "export": Command(
        "write a policy for other software: merged, or its adapters",
        (
            "vla-rl export runs/first --out runs/export",
            "vla-rl export runs/first --out runs/adapter --adapter",
        ),
        _export,
    ),
    "report": Command(
        "write a run's report as one HTML file", ("vla-rl report runs/first",), _report
    ),
    "doctor": Command(
        "check this machine and say how to mend what is wrong",
        ("vla-rl doctor", "vla-rl doctor --json", "vla-rl doctor --checkpoint openvla/openvla-7b"),
        _doctor,
    ),
}  # fmt: skip


def _parse(
    cls: type[C], words: list[str], command: str, default: C | None = None, notes: str = ""
) -> C:
    entry = COMMANDS[command]
    examples = "Examples:\n" + "\n".join(f"  {example}" for example in entry.examples)
    parts = [f"{entry.summary[0].upper()}{entry.summary[1:]}.", notes, examples]
    return parse(
        cls,
        words,
        command=command,
        description="\n\n".join(part for part in parts if part),
        default=default,
        usage=" [PRESET]" if command == "train" else "",
        flat=cls is EvalArguments,
    )


def _overview() -> str:
    lines = ["usage: vla-rl COMMAND [OPTIONS]", ""]
    lines += [
        "Make pretrained vision-language-action policies better by practice.",
        "",
        "commands:",
    ]
    lines += [f"  {name:<11} {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "options:"]
    lines += ["  --help      this text; `vla-rl COMMAND --help` lists the command's options"]
    lines += ["  --version   the version", "  --debug     show the traceback of an error"]
    return "\n".join([*lines, "", "Start with:  vla-rl quickstart"])


def _result_table(result: dict[str, Any]) -> str:
    rows = [*result["tasks"].items(), ("all", result["overall"])]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {row['successes']:>4}/{row['episodes']:<4} {row['success_rate']:6.1%}"
        f"  [{row['interval'][0]:.1%}, {row['interval'][1]:.1%}]"
        for name, row in rows
    )


# --------------------------------------------------------------------------------------------------
# Presets and resumption


def train_request(words: list[str]) -> tuple[TrainConfig, Path | None]:
    """The configuration `vla-rl train WORDS` asks for, and the run folder to go on in, if any."""
    from vla_rl.recipes.presets import SUMMARIES, preset

    resume, words = _take_value(words, "--resume")
    chosen = words[0] if words and not words[0].startswith("-") else None
    words = words[1:] if chosen else words
    if resume is not None:
        from vla_rl.runtime.run_folder import training_run

        run = training_run(Path(resume))
        return _resumed(run, chosen, words), run
    base, words = with_lora(preset(chosen or DEFAULT_PRESET), words)
    presets = "\n".join(f"  {name:<26} {summary}" for name, summary in SUMMARIES.items())
    notes = (
        f"To go on with a run: vla-rl train --resume RUN [{'] ['.join(RESUMABLE)}]\n\n"
        f"Presets (default {DEFAULT_PRESET}); the options' defaults below are the chosen one's:\n{presets}\n\n"
        "--policy.lora trains adapters only; --policy.lora.{rank,alpha,dropout,vision} set them."
    )
    config = _parse(TrainConfig, words, "train", base, notes)
    if not config.run.name:
        name = f"{chosen or DEFAULT_PRESET}-{datetime.now():%Y%m%d-%H%M%S}"
        config = replace(config, run=replace(config.run, name=name))
    return config, None


def _resumed(folder: Path, chosen: str | None, words: list[str]) -> TrainConfig:
    from vla_rl.runtime.run_folder import read_config

    if chosen:
        raise UserError(f"--resume goes on with the run's own configuration: leave out {chosen!r}")
    config = read_config(folder, TrainConfig)
    for word in words:
        option = normal(word)
        if option.startswith("--") and option not in (*RESUMABLE, "--help"):
            raise UserError(
                f"{option} cannot change in a resumed run, only {' and '.join(RESUMABLE)} can: "
                "start a new run for it"
            )
    return _parse(TrainConfig, words, "train", config)


def _take_value(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """Take `option VALUE` or `option=VALUE` out of `words`."""
    for at, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2], words[:at] + words[at + 1 :]
        if word == option:
            if at + 1 == len(words) or words[at + 1].startswith("-"):
                raise UserError(f"{option} needs a value: the folder of the run to go on with")
            return words[at + 1], words[:at] + words[at + 2 :]
    return None, words
