"""The main job from nothing to a report, on a laptop: demonstrations -> SFT -> PPO -> before and after.

Every step leaves a folder; a step whose folder is complete is not done again, and a training run that was stopped
goes on. So a quickstart can be interrupted at any time and started again with the same command.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vla_rl.config import DemosConfig, SFTConfig, TrainConfig
from vla_rl.config.training import QuickstartConfig
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.presets import preset
from vla_rl.recipes.sft import fine_tune
from vla_rl.recipes.train_ppo import train
from vla_rl.report.html import write_report
from vla_rl.runtime.progress import console
from vla_rl.runtime.run_folder import QUICKSTART_RUN


def quickstart(config: QuickstartConfig) -> Path | None:
    """Run every step that is still to do. Returns the path of the report, None if practice was interrupted."""
    out = Path(config.out)
    if config.force:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    base = preset(config.preset)
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
        shutil.rmtree(sft, ignore_errors=True)  # a fine-tuning that was interrupted
        tuning = SFTConfig(
            dataset=str(demos),
            out=str(sft),
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
    if not (ppo / "eval" / "after-sampled.json").is_file():
        console().print("The same command goes on with practice, and then writes the report.")
        return None
    shutil.copyfile(
        sft / "metrics.jsonl", ppo / "sft.jsonl"
    )  # the report shows the fine-tuning too
    _timed("4/4 report", lambda: write_report(ppo, report))
    console().print(f"Report: {report}  (open it in a browser)")
    return report


def _practice(config: QuickstartConfig, base: TrainConfig) -> TrainConfig:
    out = Path(config.out)
    return replace(
        base,
        policy=replace(base.policy, checkpoint=str(out / "sft" / "policy")),
        ppo=replace(base.ppo, minutes=config.minutes, iterations=max(base.ppo.iterations, 1000)),
        eval=replace(base.eval, episodes_per_task=config.episodes_per_task, videos=2),
        run=replace(base.run, name=QUICKSTART_RUN, root=str(out), seed=config.seed),
    )


def _timed(title: str, step: Callable[[], object]) -> None:
    console().print(f"[bold]{title}[/bold]")
    started = time.perf_counter()
    step()
    console().print(f"  took {time.perf_counter() - started:.0f} s")
