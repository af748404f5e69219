"""The commands: what each is for, how it is called, and the recipe it runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vla_rl.cli.arguments import (
    ConvertArguments,
    DoctorArguments,
    EvalArguments,
    ReportArguments,
)
from vla_rl.cli.options import normal, parse, say, value_of, with_lora
from vla_rl.cli.training import ablation_request, train_request
from vla_rl.config import (
    DemosConfig,
    EnvConfig,
    ExportConfig,
    LoraConfig,
    PolicyConfig,
    RewardCollectConfig,
    RewardEvalConfig,
    RewardLabelConfig,
    RewardModelConfig,
    RewardScoreConfig,
    SFTConfig,
)
from vla_rl.config.search import BestOfConfig, ScalingConfig
from vla_rl.config.training import QuickstartConfig

C = TypeVar("C")

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it, whether or not there was time to save."""


def parse_command(
    cls: type[C], words: list[str], command: str, default: C | None = None, notes: str = ""
) -> C:
    """The options in `words` of the command called `command`; its help has its summary and examples."""
    entry = COMMANDS[command]
    examples = "Examples:\n" + "\n".join(f"  {example}" for example in entry.examples)
    parts = [f"{entry.summary[0].upper()}{entry.summary[1:]}.", notes, examples]
    return parse(
        cls,
        words,
        command=command,
        description="\n\n".join(part for part in parts if part),
        default=default,
        usage=" [PRESET]" if command in ("train", "ablate") else "",
        flat=cls is EvalArguments,
    )


def _quickstart(words: list[str]) -> int:
    config = parse_command(QuickstartConfig, words, "quickstart")
    from vla_rl.recipes.quickstart import quickstart

    return 0 if quickstart(config) else INTERRUPTED


def _demos(words: list[str]) -> int:
    from vla_rl.recipes.protocols import laptop_env

    suite = value_of("--env.suite", words) or EnvConfig().suite
    config = parse_command(DemosConfig, words, "demos", DemosConfig(env=laptop_env(suite)))
    from vla_rl.recipes.demos import collect_demos

    say(f"Demonstrations: {collect_demos(config)}")
    return 0


def _convert(words: list[str]) -> int:
    request = parse_command(ConvertArguments, words, "convert")
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
    config = parse_command(SFTConfig, words, "sft", base)
    from vla_rl.recipes.sft import fine_tune

    say(f"Fine-tuned policy: {fine_tune(config)}")
    return 0


def _train(words: list[str]) -> int:
    config, resume = train_request(words, parse_command)
    from vla_rl.recipes.train_ppo import train

    say(f"Run folder: {train(config, resume)}")
    return 0


def _eval(words: list[str]) -> int:
    request = parse_command(EvalArguments, words, "eval")
    videos = request.videos_out
    if videos is None and request.protocol.videos > 0:
        videos = (request.json.parent if request.json else Path()) / "videos"
    shared = (None, request.json, videos, request.workers)
    policy = PolicyConfig(unnorm_key=request.unnorm_key, base=request.base, dtype=request.dtype)
    if request.best_of == 1:
        from vla_rl.recipes.evaluate import evaluate_checkpoint

        result = evaluate_checkpoint(
            request.checkpoint, request.protocol, *shared, policy, request.horizon
        )
    else:
        from vla_rl.recipes.search import evaluate_best_of

        sampled = request.protocol.temperature
        search = BestOfConfig(
            request.best_of, request.mode, request.chooser, request.judge, request.lookahead,
            temperature=sampled or 1.0, greedy_first=sampled == 0,
        )  # fmt: skip
        result = evaluate_best_of(
            request.checkpoint, request.protocol, search, *shared, policy, request.horizon
        )
    say(_result_table(result))
    return 0


def _reward_collect(words: list[str]) -> int:
    config = parse_command(RewardCollectConfig, words, "reward collect")
    from vla_rl.recipes.reward_labels import collect_trajectories

    say(f"Trajectories: {collect_trajectories(config)}")
    return 0


def _reward_label(words: list[str]) -> int:
    config = parse_command(RewardLabelConfig, words, "reward label")
    from vla_rl.recipes.reward_labels import label_dataset

    say(f"Labels: {label_dataset(config)}")
    return 0


def _reward_train(words: list[str]) -> int:
    adapters = [word for word in words if normal(word).startswith("--lora")]
    base = RewardModelConfig()
    if adapters:  # the folder of the backbone is only known when the words are parsed
        backbone = value_of("--backbone", words) or base.backbone
        base = replace(base, backbone=backbone, lora=LoraConfig())
    words = [word for word in words if word != "--lora"]
    config = parse_command(RewardModelConfig, words, "reward train", base)
    from vla_rl.recipes.reward_model import train_reward

    say(f"Judge: {train_reward(config)}")
    return 0


def _reward_eval(words: list[str]) -> int:
    config = parse_command(RewardEvalConfig, words, "reward eval")
    from vla_rl.recipes.reward_evaluation import evaluate_reward

    say(json.dumps(evaluate_reward(config), indent=2))
    return 0


def _reward_score(words: list[str]) -> int:
    config = parse_command(RewardScoreConfig, words, "reward score")
    from vla_rl.recipes.reward_evaluation import score_reward

    say(f"Picture: {score_reward(config)}")
    return 0


def _scaling(words: list[str]) -> int:
    config = parse_command(ScalingConfig, words, "scaling")
    from vla_rl.recipes.search import scaling_study

    table = scaling_study(config)
    say(f"Table: {table}")
    return 0


def _ablate(words: list[str]) -> int:
    config = ablation_request(words, parse_command)
    from vla_rl.recipes.ablate import ablate

    table = ablate(config)
    say(f"{table.read_text(encoding='utf-8')}\nTable: {table}")
    return 0


def _export(words: list[str]) -> int:
    config = parse_command(ExportConfig, words, "export")
    from vla_rl.recipes.export import export

    say(f"Exported: {export(config)}")
    return 0


def _report(words: list[str]) -> int:
    request = parse_command(ReportArguments, words, "report")
    from vla_rl.report.html import write_report

    say(f"Report: {write_report(request.run, request.out)}")
    return 0


def _doctor(words: list[str]) -> int:
    request = parse_command(DoctorArguments, words, "doctor")
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


def _result_table(result: dict[str, Any]) -> str:
    rows = [*result["tasks"].items(), ("all", result["overall"])]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {row['successes']:>4}/{row['episodes']:<4} {row['success_rate']:6.1%}"
        f"  [{row['interval'][0]:.1%}, {row['interval'][1]:.1%}]"
        for name, row in rows
    )


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
            "vla-rl eval runs/first --best-of 8 --judge runs/reward",
        ),
        _eval,
    ),
    "reward collect": Command(
        "keep whole episodes of a policy, failures among them, for a process reward model",
        ("vla-rl reward collect runs/sft --episodes-per-task 20 --out runs/play",),
        _reward_collect,
    ),
    "reward label": Command(
        "label the decisions of trajectories, and draw them",
        ("vla-rl reward label runs/demos --plot",),
        _reward_label,
    ),
    "reward train": Command(
        "train a process reward model: a judge of what the robot is doing",
        ("vla-rl reward train --datasets runs/demos runs/play --out runs/reward",),
        _reward_train,
    ),
    "reward eval": Command(
        "measure a process reward model on episodes it was not trained on",
        ("vla-rl reward eval runs/reward",),
        _reward_eval,
    ),
    "reward score": Command(
        "draw what a process reward model thinks of an episode, over time",
        ("vla-rl reward score runs/reward runs/play --episode 3 --out episode.png",),
        _reward_score,
    ),
    "scaling": Command(
        "success against the number of candidates at test time",
        ("vla-rl scaling runs/sft/policy --search.judge runs/reward --out runs/scaling",),
        _scaling,
    ),
    "ablate": Command(
        "train a preset whole and without each of its parts, and compare",
        ("vla-rl ablate metaworld-mt5 --checkpoint runs/sft/policy --judge runs/reward --minutes 8",),
        _ablate,
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
