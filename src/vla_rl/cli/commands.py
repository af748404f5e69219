"""The commands: what each is for, how it is called, and the recipe it runs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from vla_rl.cli import arguments
from vla_rl.cli.arguments import (
    ConvertArguments,
    DoctorArguments,
    EvalArguments,
    FilmArguments,
    LearningCurveArguments,
    ReportArguments,
)
from vla_rl.cli.needs import require_extras
from vla_rl.cli.options import PRINT_CONFIG, normal, parse, say, value_of, with_lora
from vla_rl.cli.tables import reward_model_table, success_table
from vla_rl.cli.training import ablation_request, train_request
from vla_rl.config import (
    AblationConfig,
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
    TrainConfig,
)
from vla_rl.config.quickstart import QuickstartConfig
from vla_rl.config.search import BestOfConfig, ScalingConfig

C = TypeVar("C")


def parse_command(
    cls: type[C], words: list[str], command: str, default: C | None = None, notes: str = ""
) -> C:
    """The options in `words` of the command called `command`; its help has its summary and examples.

    UserError, one line, for options that do not fit and for packages that are not installed.
    """
    entry = COMMANDS[command]
    examples = "Examples:\n" + "\n".join(f"  {example}" for example in entry.examples)
    summary = f"{entry.summary[0].upper()}{entry.summary[1:]}."
    parts = [summary, notes, f"{PRINT_CONFIG} prints all settings as JSON, and ends.", examples]
    config = parse(
        cls,
        words,
        command=command,
        description="\n\n".join(part for part in parts if part),
        default=default,
        usage=" [PRESET]" if command in ("train", "ablate") else "",
        flat=cls is EvalArguments,
    )
    require_extras(command, config)
    return config


class Recipe(NamedTuple):
    """A command that parses a `config`, gives it to `function` in `module`, and says what that returned.

    The module is imported when the command runs, so that no command waits for another's libraries.
    """

    config: type[Any]
    """Given as it is, or field by field if it is one of `cli.arguments`."""
    module: str
    function: str
    says: str

    def __call__(self, words: list[str]) -> int:
        command = next(name for name, entry in COMMANDS.items() if entry.run is self)
        config = parse_command(self.config, words, command)
        result = self.call(config)
        say(f"{self.says}: {result}")
        return 0

    def call(self, config: Any) -> Any:
        """What the function returns for a parsed `config`."""
        function = getattr(import_module(f"vla_rl.{self.module}"), self.function)
        by_field = self.config.__module__ == arguments.__name__
        return function(**vars(config)) if by_field else function(config)


def _quickstart(words: list[str]) -> int:
    config = parse_command(QuickstartConfig, words, "quickstart")
    from vla_rl.recipes.quickstart import quickstart

    quickstart(config)
    return 0


def _demos(words: list[str]) -> int:
    from vla_rl.envs.defaults import laptop_env

    suite = value_of("--env.suite", words) or EnvConfig().suite
    config = parse_command(DemosConfig, words, "demos", DemosConfig(env=laptop_env(suite)))
    from vla_rl.recipes.demos import collect_demos

    say(f"Demonstrations: {collect_demos(config)}")
    return 0


def _sft(words: list[str]) -> int:
    base, words = with_lora(SFTConfig(), words)
    config = parse_command(SFTConfig, words, "sft", base)
    from vla_rl.recipes.sft import fine_tune

    say(f"Fine-tuned policy: {fine_tune(config)}")
    return 0


def _train(words: list[str]) -> int:
    # what its store has to say when another process has ended is said better by ours
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from vla_rl.distributed.place import launched

    place = launched(os.environ)
    if place is not None and place.size > 1:
        from vla_rl.recipes.launched_ranks import train_launched

        folder = train_launched(place, lambda: train_request(words, parse_command))
        if place.rank > 0:
            return 0
    else:
        config, resume = train_request(words, parse_command)
        from vla_rl.recipes.ranks import train_on_ranks

        folder = train_on_ranks(config, resume)
    say(f"Run folder: {folder}")
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

        evaluate_checkpoint(
            request.checkpoint, request.protocol, *shared, policy, request.horizon, show=_show
        )
    else:
        from vla_rl.recipes.test_time_scaling import evaluate_best_of

        sampled = request.protocol.temperature
        search = BestOfConfig(
            request.best_of, request.mode, request.chooser, request.reward_model, request.lookahead,
            temperature=sampled or 1.0, greedy_first=sampled == 0, success_ahead=request.success_ahead,
        )  # fmt: skip
        evaluate_best_of(
            request.checkpoint,
            request.protocol,
            search,
            *shared,
            policy,
            request.horizon,
            show=_show,
        )
    return 0


def _show(result: dict[str, Any]) -> None:
    say(success_table(result))


def _reward_train(words: list[str]) -> int:
    adapters = [word for word in words if normal(word).startswith("--lora")]
    base = RewardModelConfig()
    if adapters:  # the folder of the backbone is only known when the words are parsed
        backbone = value_of("--backbone", words) or base.backbone
        base = replace(base, backbone=backbone, lora=LoraConfig())
    words = [word for word in words if word != "--lora"]
    config = parse_command(RewardModelConfig, words, "reward train", base)
    from vla_rl.recipes.train_reward import train_reward

    say(f"Reward model: {train_reward(config)}")
    return 0


def _reward_eval(words: list[str]) -> int:
    config = parse_command(RewardEvalConfig, words, "reward eval")
    from vla_rl.recipes.evaluate_reward import evaluate_reward

    say(reward_model_table(evaluate_reward(config)))
    return 0


def _ablate(words: list[str]) -> int:
    config = ablation_request(words, parse_command)
    from vla_rl.recipes.ablate import ablate

    table = ablate(config)
    say(f"{table.read_text(encoding='utf-8')}\nTable: {table}")
    return 0


def _doctor(words: list[str]) -> int:
    request = parse_command(DoctorArguments, words, "doctor")
    from vla_rl.diagnostics.machine import doctor, format_checks, healthy

    if request.checkpoint:
        from vla_rl.diagnostics.checkpoint import examine_checkpoint

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
    settings: type[Any] | None = None

    @property
    def config(self) -> type[Any]:
        """The dataclass of its options; a `Recipe` knows its own."""
        return self.settings or cast(Recipe, self.run).config


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        "the whole job: demonstrations, fine-tuning, PPO, evaluation, report",
        (
            "vla-rl quickstart",
            "vla-rl quickstart --preset toy --out runs/toy",
            "vla-rl quickstart --preset metaworld-mt10 --episodes 40000 --out runs/mt10",
        ),
        _quickstart,
        QuickstartConfig,
    ),
    "demos": Command(
        "collect expert demonstrations as a LeRobotDataset v3",
        (
            "vla-rl demos --env.suite mt5 --episodes-per-task 5 --out runs/demos",
            "vla-rl demos --env.suite libero-object --episodes-per-task 10 --out runs/libero-demos",
        ),
        _demos,
        DemosConfig,
    ),
    "convert": Command(
        "convert LIBERO's official demonstrations into a LeRobotDataset v3",
        ("vla-rl convert datasets/libero_spatial --out runs/libero-spatial --image-size 224",),
        Recipe(ConvertArguments, "data.libero_hdf5", "convert_libero_hdf5", "Demonstrations"),
    ),
    "sft": Command(
        "fine-tune a policy on demonstrations",
        ("vla-rl sft --dataset runs/demos --out runs/sft",),
        _sft,
        SFTConfig,
    ),
    "train": Command(
        "improve a policy by online PPO",
        (
            "vla-rl train toy",
            "vla-rl train metaworld-mt5 --policy.checkpoint runs/sft/policy --run.name first",
            "vla-rl train metaworld-mt5 --policy.checkpoint runs/sft/policy --optimizer.learning-rate 1e-4",
            "vla-rl train --resume runs/first --schedule.iterations 120",
        ),
        _train,
        TrainConfig,
    ),
    "eval": Command(
        "evaluate a policy on held-out initial states",
        (
            "vla-rl eval runs/first --suite mt5 --episodes-per-task 30 --json result.json",
            "vla-rl eval runs/sft/policy --temperature 1 --videos 2",
            "vla-rl eval openvla/openvla-7b-finetuned-libero-spatial --suite libero-spatial",
            "vla-rl eval runs/first --best-of 8 --reward-model runs/reward",
        ),
        _eval,
        EvalArguments,
    ),
    "reward collect": Command(
        "keep whole episodes of a policy, failures among them, for a process reward model",
        ("vla-rl reward collect runs/sft --episodes-per-task 20 --out runs/play",),
        Recipe(RewardCollectConfig, "recipes.label_trajectories", "collect_trajectories", "Trajectories"),
    ),
    "reward label": Command(
        "label the turns of trajectories, and draw them",
        ("vla-rl reward label runs/demos --plot",),
        Recipe(RewardLabelConfig, "recipes.label_trajectories", "label_dataset", "Labels"),
    ),
    "reward train": Command(
        "train a process reward model: what the robot is doing, scored from images",
        ("vla-rl reward train --datasets runs/demos runs/play --out runs/reward",),
        _reward_train,
        RewardModelConfig,
    ),
    "reward eval": Command(
        "measure a process reward model on episodes it was not trained on",
        ("vla-rl reward eval runs/reward",),
        _reward_eval,
        RewardEvalConfig,
    ),
    "reward score": Command(
        "draw what a process reward model thinks of an episode, over time",
        ("vla-rl reward score runs/reward runs/play --episode 3 --out episode.png",),
        Recipe(RewardScoreConfig, "recipes.evaluate_reward", "score_reward", "Image"),
    ),
    "test-time": Command(
        "success against the number of candidates at test time",
        ("vla-rl test-time runs/sft/policy --search.reward-model runs/reward --out runs/scaling",),
        Recipe(ScalingConfig, "recipes.test_time_scaling", "scaling_study", "Table"),
    ),
    "learning-curve": Command(
        "success against the updates of PPO, of a run that was evaluated on its way",
        ("vla-rl learning-curve runs/first",),
        Recipe(LearningCurveArguments, "recipes.learning_curve", "training_curve", "Image"),
    ),
    "ablate": Command(
        "train a preset whole and without each of its parts, and compare",
        ("vla-rl ablate metaworld-mt5 --checkpoint runs/sft/policy --reward-model runs/reward --minutes 8",),
        _ablate,
        AblationConfig,
    ),
    "export": Command(
        "write a policy for other software: merged, or its adapters",
        (
            "vla-rl export runs/first --out runs/export",
            "vla-rl export runs/first --out runs/adapter --adapter",
        ),
        Recipe(ExportConfig, "recipes.export", "export", "Exported"),
    ),
    "report": Command(
        "write a run's report as one HTML file",
        ("vla-rl report runs/first",),
        Recipe(ReportArguments, "report.page.write", "write_report", "Report"),
    ),
    "film": Command(
        "show one task before and after practice, as a short animated image",
        ("vla-rl film runs/quickstart --task drawer-open --out film.gif",),
        Recipe(FilmArguments, "report.figures.film", "write_film", "Film"),
    ),
    "doctor": Command(
        "check this machine and say how to mend what is wrong",
        ("vla-rl doctor", "vla-rl doctor --json", "vla-rl doctor --checkpoint openvla/openvla-7b"),
        _doctor,
        DoctorArguments,
    ),
}  # fmt: skip
