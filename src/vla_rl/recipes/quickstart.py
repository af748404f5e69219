"""The main job from nothing to a report, on a laptop: demonstrations -> SFT -> PPO -> before and after.

Every step leaves a folder; a step whose folder is complete is not done again, and a training run that was stopped
goes on. So a quickstart can be interrupted at any time and started again with the same command. More minutes or
episodes than before go on with practice. Anything else that differs is refused.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_rl.config import DemosConfig, PolicyConfig, SFTConfig, TrainConfig, UserError
from vla_rl.config.quickstart import QuickstartConfig
from vla_rl.config.serialize import differences, from_json, to_json
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.presets import preset
from vla_rl.recipes.sft import fine_tune
from vla_rl.recipes.train import train
from vla_rl.report.page.write import write_report
from vla_rl.runtime.files import (
    cannot_write,
    read_json,
    require_writable,
    write_json,
    write_text,
)
from vla_rl.runtime.progress import console, note
from vla_rl.runtime.run_folder import QUICKSTART_CURVE, QUICKSTART_REQUEST, QUICKSTART_RUN
from vla_rl.runtime.signals import Stopped

LIMITS = ("episodes", "minutes")
"""What a quickstart may be given anew when it goes on."""
EPISODES = 10_000
"""Of practice, where neither the quickstart nor its preset says how many."""
PARTS = ("demos", "sft", QUICKSTART_RUN, "report.html")
"""What a quickstart makes in its folder."""


def quickstart(config: QuickstartConfig) -> Path:
    """Run every step that is still to do. Returns the path of the report.

    Raises UserError where `config.out` cannot be written, or holds a quickstart with other settings, and `Stopped`, a
    KeyboardInterrupt, where a signal ended it.
    """
    out = require_writable(Path(config.out), "folder")
    base = preset(config.preset)
    if config.episodes is None:
        config = replace(config, episodes=base.schedule.episodes or EPISODES)
    if config.force:
        _throw_away(out)
    _begin(config, out)
    try:
        return _run_steps(config, base, out)
    except Stopped as stopped:
        raise Stopped(
            stopped.number, f"stopped by {stopped.signal_name}; the same quickstart command goes on"
        ) from stopped


def _run_steps(config: QuickstartConfig, base: TrainConfig, out: Path) -> Path:
    demos, sft, ppo = out / "demos", out / "sft", out / QUICKSTART_RUN

    if not (demos / "meta" / "info.json").is_file():
        demonstrations = DemosConfig(
            env=base.env,
            out=str(demos),
            episodes_per_task=config.demos_per_task + 1,
            seed=config.seed,
        )
        _timed("1/4 expert demonstrations", lambda: collect_demos(demonstrations))

    if not (sft / "policy" / "config.json").is_file():
        tuning = SFTConfig(
            dataset=str(demos),
            out=str(sft),
            policy=PolicyConfig(scratch=base.policy.scratch, kind=base.policy.kind),
            action_chunk=base.env.action_chunk,
            epochs=config.sft_epochs,
            validation_fraction=1 / (config.demos_per_task + 1),
            seed=config.seed,
        )
        _timed("2/4 supervised fine-tuning", lambda: fine_tune(tuning))

    practice = _practice(config, base)
    if not (ppo / "eval" / "after-sampled.json").is_file():
        resume = ppo if (ppo / "config.json").is_file() else None
        _timed("3/4 practice: online PPO", lambda: train(practice, resume))

    report = out / "report.html"
    # the report shows the fine-tuning too
    write_text(ppo / QUICKSTART_CURVE, (sft / "metrics.jsonl").read_text(encoding="utf-8"))
    _timed("4/4 report", lambda: write_report(ppo, report))
    note(f"Report: {report}  (open it in a browser)")
    return report


def _throw_away(out: Path) -> None:
    """Remove the quickstart in `out`, and nothing else. UserError where there is none, or it cannot be removed."""
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / QUICKSTART_REQUEST).is_file():
        raise UserError(
            f"{out} holds something, but no quickstart: --force throws away quickstarts only. Choose another --out, or "
            "empty the folder yourself"
        )
    try:
        for name in (
            *PARTS,
            QUICKSTART_REQUEST,
        ):  # the request last: without it this would be no quickstart
            entry = out / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be removed: {error.strerror}") from error


def _begin(config: QuickstartConfig, out: Path) -> None:
    """Note in `out` what is asked for. UserError if an earlier quickstart there was asked for something else.

    More minutes or episodes than before are practised on top, so what was evaluated after those is no longer the end.
    """
    asked = {name: v for name, v in to_json(config).items() if name not in ("out", "force")}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(cannot_write(out, error)) from error
    file = out / QUICKSTART_REQUEST
    before = _request(file) if file.is_file() else asked
    if not file.is_file() and any((out / name).exists() for name in PARTS):
        raise UserError(
            f"{out} holds {' and '.join(name for name in PARTS if (out / name).exists())}, but no quickstart: choose "
            "another --out"
        )
    different = [
        f"--{name.replace('_', '-')} {old}"
        for name, (old, _) in differences(before, asked).items()
        if name not in LIMITS
    ]
    if different:
        raise UserError(
            f"{out} holds a quickstart with {', '.join(different)}: give the same to go on with it, another --out to "
            "keep it, or --force to throw it away"
        )
    if any(_raised(before.get(name), asked[name]) for name in LIMITS):
        for old in (out / QUICKSTART_RUN / "eval").glob("after-*.json"):
            old.unlink()
    write_json(file, asked)


def _request(file: Path) -> dict[str, Any]:
    """What the quickstart in a folder was asked for. UserError where that is damaged."""
    saved = read_json(file)
    from_json(QuickstartConfig, {k: v for k, v in saved.items() if v is not None}, source=file)
    return saved


def _raised(before: float | None, now: float) -> bool:
    """Whether a limit allows more than it did; 0 is none at all, None is not known."""
    return before is not None and before > 0 and (now > before or now == 0)


def _practice(config: QuickstartConfig, base: TrainConfig) -> TrainConfig:
    out = Path(config.out)
    return replace(
        base,
        policy=replace(base.policy, checkpoint=str(out / "sft" / "policy")),
        schedule=replace(
            base.schedule,
            minutes=config.minutes,
            episodes=config.episodes,
            iterations=max(base.schedule.iterations, 1000),
        ),
        eval=replace(base.eval, episodes_per_task=config.episodes_per_task, videos=2),
        run=replace(base.run, name=QUICKSTART_RUN, root=str(out), seed=config.seed),
    )


def _timed(title: str, step: Callable[[], object]) -> None:
    console().print(title, style="bold", markup=False, highlight=False)
    started = time.perf_counter()
    step()
    note(f"  took {time.perf_counter() - started:.0f} s")
