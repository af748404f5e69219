"""What commands do beyond calling one function: they give options to a recipe, and show what it returns."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_rl.cli import comparing
from vla_rl.cli.arguments import CertifyArguments, DoctorArguments, EvalArguments, ReportArguments
from vla_rl.cli.door_arguments import CheckEnvArguments, RemoteEvalArguments
from vla_rl.cli.options import ParseCommand, normal, say, value_of, with_lora
from vla_rl.cli.tables import reward_model_table, starts_table, success_table
from vla_rl.cli.training import plan_request, seeds_request, train_request
from vla_rl.config import (
    DemosConfig,
    EnvConfig,
    LoraConfig,
    PolicyConfig,
    RewardEvalConfig,
    RewardModelConfig,
    SFTConfig,
    UserError,
)
from vla_rl.config.agreement import AgreementConfig
from vla_rl.config.analysis import AnalysisConfig
from vla_rl.config.preference import PreferConfig
from vla_rl.config.quickstart import QuickstartConfig
from vla_rl.config.reproduce import ReproduceConfig
from vla_rl.config.search import BestOfConfig


def quickstart(words: list[str], parse_command: ParseCommand) -> int:
    config = parse_command(QuickstartConfig, words, "quickstart")
    from vla_rl.recipes.quickstart import quickstart

    quickstart(config)
    return 0


def demos(words: list[str], parse_command: ParseCommand) -> int:
    from vla_rl.envs.defaults import laptop_env

    suite = value_of("--env.suite", words) or EnvConfig().suite
    config = parse_command(DemosConfig, words, "demos", DemosConfig(env=laptop_env(suite)))
    from vla_rl.recipes.demos import collect_demos

    say(f"Demonstrations: {collect_demos(config)}")
    return 0


def report(words: list[str], parse_command: ParseCommand) -> int:
    asked = parse_command(ReportArguments, words, "report")
    if asked.live:
        from vla_rl.report.live import serve_report

        serve_report(asked.run, asked.port, asked.pause)
        return 0
    from vla_rl.report.page.write import write_report

    say(f"Report: {write_report(asked.run, asked.out)}")
    return 0


def sft(words: list[str], parse_command: ParseCommand) -> int:
    base, words = with_lora(SFTConfig(), words)
    config = parse_command(SFTConfig, words, "sft", base)
    from vla_rl.recipes.sft import fine_tune

    say(f"Fine-tuned policy: {fine_tune(config)}")
    return 0


def prefer(words: list[str], parse_command: ParseCommand) -> int:
    base, words = with_lora(PreferConfig(), words)
    config = parse_command(PreferConfig, words, "prefer", base)
    from vla_rl.recipes.prefer import prefer

    say(f"Policy: {prefer(config)}")
    return 0


def train(words: list[str], parse_command: ParseCommand) -> int:
    # what its store has to say when another process has ended is said better by ours
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from vla_rl.distributed.place import launched

    place = launched(os.environ)
    several, words = seeds_request(words)
    if several is not None:
        return comparing.train_seeds(words, parse_command, several, place)
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


def plan(words: list[str], parse_command: ParseCommand) -> int:
    request, config, preset, rest = plan_request(words, parse_command)
    from vla_rl.recipes.plan import machine_of, make_plan

    machine = machine_of(
        request.nodes, request.gpus, request.gpu_memory, request.gpu, request.cpus, request.ram
    )
    given = (*request.costs, *([request.calibrate] if request.calibrate else []))
    text = make_plan(
        config, machine, given, preset=preset, words=rest, episodes=request.episodes,
        episode_turns=request.episode_turns, json=request.json, save_costs=request.save_costs,
    )  # fmt: skip
    say(text)
    return 0


def evaluate(words: list[str], parse_command: ParseCommand) -> int:
    if (address := value_of("--policy", words)) is not None:
        return _evaluate_remote(address, words, parse_command)
    notes = "For a policy that another program serves: vla-rl eval --policy ws://HOST:PORT --help"
    request = parse_command(EvalArguments, words, "eval", notes=notes)
    shared = (None, request.json, _videos_folder(request), request.workers)
    policy = PolicyConfig(
        kind=request.kind, unnorm_key=request.unnorm_key, base=request.base, dtype=request.dtype
    )
    if request.starts:
        from vla_rl.recipes.success_by_start import success_by_start

        result = success_by_start(
            request.checkpoint, request.starts, request.fractions, request.protocol, *shared[1:], policy,
            request.horizon,
        )  # fmt: skip
        say(starts_table(result))
    elif request.best_of == 1:
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
            trajectory_turns=request.trajectory_turns, refine_from=request.refine_from,
            temperatures=request.temperatures, turn_budget=request.turn_budget,
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


def _evaluate_remote(address: str, words: list[str], parse_command: ParseCommand) -> int:
    """`eval --policy ADDRESS`: the same command with the options of a policy that is served elsewhere."""
    at = next(i for i, word in enumerate(words) if normal(word) == "--policy")
    count = 1 if "=" in words[at] else 2
    words = [address, *words[:at], *words[at + count :]]
    if address.startswith("-") or not address:
        raise UserError("eval: --policy needs an address, as --policy ws://127.0.0.1:8000")
    request = parse_command(RemoteEvalArguments, words, "eval")
    from vla_rl.recipes.evaluate_remote import evaluate_remote

    evaluate_remote(
        request.policy, request.protocol, request.remote, request.json, _videos_folder(request),
        request.workers, show=_show,
    )  # fmt: skip
    return 0


def _videos_folder(request: EvalArguments | RemoteEvalArguments) -> Path | None:
    if request.videos_out is None and request.protocol.videos > 0:
        return (request.json.parent if request.json else Path()) / "videos"
    return request.videos_out


def _show(result: dict[str, Any]) -> None:
    say(success_table(result))


def reward_train(words: list[str], parse_command: ParseCommand) -> int:
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


def reward_eval(words: list[str], parse_command: ParseCommand) -> int:
    config = parse_command(RewardEvalConfig, words, "reward eval")
    from vla_rl.recipes.evaluate_reward import evaluate_reward

    say(reward_model_table(evaluate_reward(config)))
    return 0


def analyse(words: list[str], parse_command: ParseCommand) -> int:
    config = parse_command(AnalysisConfig, words, "analyse")
    from vla_rl.recipes.analyse import analyse

    page = analyse(config)
    say(f"{page.read_text(encoding='utf-8')}\nAnalysis: {page.parent}")
    return 0


def doctor(words: list[str], parse_command: ParseCommand) -> int:
    request = parse_command(DoctorArguments, words, "doctor")
    from vla_rl.diagnostics.machine import doctor, format_checks, healthy

    if request.checkpoint:
        from vla_rl.diagnostics.checkpoint import examine_checkpoint

        checks = examine_checkpoint(request.checkpoint, request.dataset, request.unnorm_key)
    else:
        checks = doctor()
    if request.json:
        say(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        say(format_checks(checks))
    return 0 if healthy(checks) else 1


def reproduce(words: list[str], parse_command: ParseCommand) -> int:
    """0 where the published figure lies within the interval, or a card was written; else 1."""
    config = parse_command(ReproduceConfig, words, "reproduce")
    from vla_rl.recipes.reproduce import reproduce

    found = reproduce(config)
    say(f"{found['text']}\nReport: {found['folder']}")
    return 0 if found.get("within", True) else 1


def check_env(words: list[str], parse_command: ParseCommand) -> int:
    request = parse_command(CheckEnvArguments, words, "check-env")
    from vla_rl.envs.check import check_env

    say(f"{check_env(request.suite, episodes=request.episodes)}\nIt keeps its promises.")
    return 0


def certify(words: list[str], parse_command: ParseCommand) -> int:
    request = parse_command(CertifyArguments, words, "certify")
    from vla_rl.recipes.certify import certify, format_result

    result = certify(**vars(request))
    say(format_result(result))
    return 0 if result["passed"] else 1


def agree(words: list[str], parse_command: ParseCommand) -> int:
    config = parse_command(AgreementConfig, words, "agree")
    from vla_rl.recipes.agree import agree, format_agreement

    say(format_agreement(agree(config)))
    return 0
