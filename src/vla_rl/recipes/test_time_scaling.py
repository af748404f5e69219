"""Test-time scaling: let the policy propose several times, and choose.

vla-rl eval runs/quickstart --best-of 8 --mode lookahead --reward-model runs/reward --json result.json
vla-rl test-time runs/quickstart --search.reward-model runs/reward --out runs/scaling
vla-rl learning-curve runs/first                                   (trained with --run.eval-every 10)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.config import EnvConfig, EvalConfig, PolicyConfig, UserError
from vla_rl.config.search import BestOfConfig, ChooserName, ScalingConfig
from vla_rl.config.serialize import to_json
from vla_rl.envs import make_vector_env
from vla_rl.envs.env import VectorEnv
from vla_rl.envs.registry import benchmark, no_dense_reward
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.result import evaluate_policy, evaluation_specs
from vla_rl.evaluation.search.best_of import play_best_of
from vla_rl.evaluation.search.branches import Cost
from vla_rl.evaluation.search.choosers import make_chooser
from vla_rl.functional import paired_difference
from vla_rl.functional.scaling import fit_log
from vla_rl.policies.policy import Policy
from vla_rl.recipes.evaluate import evaluate_checkpoint, policy_and_env
from vla_rl.report.figures.scaling import ScalingCurve, draw_scaling
from vla_rl.report.run_data import Rate
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.model import ProcessRewardModel
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.files import read_json, require_writable, write_json, write_text
from vla_rl.runtime.progress import note
from vla_rl.types import EpisodeSpec

LABELS = {
    "judge": "process reward model",
    "simulator": "the simulator's dense reward (privileged)",
    "success": "success seen ahead, else chance",
    "random": "chance",
}


def evaluate_best_of(
    checkpoint: Path,
    config: EvalConfig,
    search: BestOfConfig,
    env: EnvConfig | None = None,
    json_path: Path | None = None,
    videos: Path | None = None,
    workers: int = 0,
    policy_config: PolicyConfig | None = None,
    horizon: int = 0,
    show: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """`evaluate_checkpoint` with best of N in every decision.

    Success is the simulator's as always. The result also says how the candidates were made and what a turn cost.
    """

    def evaluate(
        policy: Policy, envs: VectorEnv, env: EnvConfig, config: EvalConfig
    ) -> tuple[dict[str, Any], list[EpisodeRecord]]:
        reward_model = reward_model_of(search, env.suite)
        return evaluate_search(policy, envs, env, config, search, reward_model)

    return evaluate_checkpoint(
        checkpoint, config, env, json_path, videos, workers, policy_config, horizon, evaluate, show
    )


def reward_model_of(search: BestOfConfig, suite: str) -> ProcessRewardModel | None:
    """The reward model that `search` needs, if it needs one. UserError for what cannot be chosen by on this suite."""
    if search.chooser == "simulator" and benchmark(suite).dense_reward_max is None:
        raise no_dense_reward(suite)
    if search.chooser != "judge" or search.best_of == 1:
        return None
    if not search.reward_model:
        raise UserError(
            "choosing by a process reward model needs its folder: --reward-model runs/reward (from `vla-rl reward "
            "train`). "
            "Without one there are --chooser random, success and simulator"
        )
    reward_model = load_reward_model(search.reward_model)
    if search.mode == "action" and not reward_model.sees_actions:
        raise UserError(
            f"mode action needs a reward model that sees actions, the one in {search.reward_model} sees images "
            f"alone: train one "
            "with --sees-actions, or choose --mode lookahead"
        )
    return reward_model


def evaluate_search(
    policy: Policy,
    envs: VectorEnv,
    env: EnvConfig,
    config: EvalConfig,
    search: BestOfConfig,
    reward_model: ProcessRewardModel | None,
) -> tuple[dict[str, Any], list[EpisodeRecord]]:
    """`evaluate_policy` with best of N in every decision; the result also has `search` and `cost`."""
    # with one candidate there is nothing to choose: any chooser will do
    name = search.chooser if search.best_of > 1 else "random"
    chooser = make_chooser(name, reward_model, config.seed)
    costs: list[Cost] = []

    def play(
        policy: Policy,
        envs: VectorEnv,
        specs: Sequence[EpisodeSpec],
        temperature: float,
        seed: int,
        on_episode: Callable[[EpisodeRecord], None],
    ) -> list[EpisodeRecord]:
        records, cost = play_best_of(
            policy, envs, specs, search, chooser, seed=seed, on_episode=on_episode
        )
        costs.append(cost)
        return records

    label = f"best of {search.best_of} by {name}"
    result, records = evaluate_policy(policy, envs, env, config, label, play)
    result["sampling"] = {"mode": "best-of", "temperature": search.temperature}
    result["search"] = to_json(search)
    per_turn = costs[0].per_turn(result["wall_seconds"])
    result["cost"] = {"total": vars(costs[0]), "per_turn": per_turn}
    return result, records


# --------------------------------------------------------------------------------------------------
# Success against N


def scaling_study(config: ScalingConfig, env: EnvConfig | None = None) -> Path:
    """Evaluate with every number of candidates and every chooser; write the table and the image.

    Evaluations that the folder holds already are taken from there, so that a study that was stopped goes on. Returns
    the path of scaling.md.
    """
    out = require_writable(Path(config.out), "folder")
    policy, env, _ = policy_and_env(
        Path(config.checkpoint), config.protocol.suite, env, PolicyConfig(), config.workers, 0
    )
    choosers, reward_model = available_choosers(config, env.suite)
    (out / "evaluations").mkdir(parents=True, exist_ok=True)
    sizes = sorted(config.sizes)
    results: dict[tuple[ChooserName, int], dict[str, Any]] = {}
    with use_threads(1), make_vector_env(env) as envs:
        for size in sizes:
            for chooser in choosers:
                chosen_by = config.search.reward_model if chooser == "judge" else ""
                search = replace(
                    config.search, chooser=chooser, best_of=size, reward_model=chosen_by
                )
                name = "plain-1" if size == 1 else f"{chooser}-{size}"
                file = out / "evaluations" / f"{name}.json"
                result = stored_evaluation(file, config, search, env)
                if result is None:
                    result, _ = evaluate_search(
                        policy, envs, env, config.protocol, search, reward_model
                    )
                    result["checkpoint"] = config.checkpoint
                    write_json(file, result)
                results[chooser, size] = result
    return write_study(config, choosers, sizes, results)


def available_choosers(
    config: ScalingConfig, suite: str
) -> tuple[list[ChooserName], ProcessRewardModel | None]:
    """The choosers that can be had, and the reward model if it is one of them."""
    chosen: list[ChooserName] = []
    reward_model: ProcessRewardModel | None = None
    for chooser in config.choosers:
        search = replace(config.search, chooser=chooser, best_of=max(config.sizes))
        if (chooser == "judge" and not search.reward_model) or (
            chooser == "simulator" and benchmark(suite).dense_reward_max is None
        ):
            why = (
                "no reward model was given"
                if chooser == "judge"
                else f"{benchmark(suite).title} has no dense reward"
            )
            note(f"left out: choosing by {LABELS[chooser]}, as {why}")
            continue
        reward_model = reward_model_of(search, suite) or reward_model
        chosen.append(chooser)
    if not chosen:
        raise UserError(
            f"scaling: none of the choosers {', '.join(config.choosers)} can be had on {suite}: give a reward model "
            "(--search.reward-model), or add random or success"
        )
    return chosen, reward_model


def stored_evaluation(
    file: Path, config: ScalingConfig, search: BestOfConfig, env: EnvConfig
) -> dict[str, Any] | None:
    """What an earlier study left in `file`, if it did; UserError if it was evaluated otherwise."""
    if not file.is_file():
        return None
    stored = read_json(file)
    asked: dict[str, Any] = {
        "checkpoint": config.checkpoint,
        "suite": env.suite,
        "horizon": env.horizon,
        "seed": config.protocol.seed,
        "episodes": [
            [spec.task, spec.initial_state]
            for spec in evaluation_specs(env, config.protocol, list(stored.get("tasks", {})))
        ],
    }
    found = {name: stored.get(name) for name in asked}
    found["episodes"] = [[e["task"], e["initial_state"]] for e in stored.get("episodes", [])]
    wanted, kept = to_json(search), dict(stored.get("search", {}))
    if search.best_of == 1:  # the same whoever chooses
        kept |= {name: wanted[name] for name in ("chooser", "reward_model", "lookahead", "mode")}
    different = [name for name, value in asked.items() if found[name] != value]
    different += [f"search.{name}" for name, value in wanted.items() if kept.get(name) != value]
    if different:
        raise UserError(
            f"{file} was evaluated with another {', '.join(different)}: choose another folder (--out) or remove it"
        )
    return stored


def write_study(
    config: ScalingConfig,
    choosers: Sequence[ChooserName],
    sizes: Sequence[int],
    results: dict[tuple[ChooserName, int], dict[str, Any]],
) -> Path:
    """scaling.json, scaling.md and scaling.png in the study's folder."""
    out, search = Path(config.out), config.search
    curves, rows, fits = [], [], {}
    for chooser in choosers:
        own = {size: results[chooser, size] for size in sizes}
        outcomes = np.array([outcomes_of(result) for result in own.values()])
        fit = (
            fit_log(sizes, outcomes, resamplings=config.bootstrap, seed=config.protocol.seed)
            if len(sizes) > 1
            else None
        )
        rates = {size: _rate(result) for size, result in own.items()}
        curves.append(ScalingCurve(chooser, LABELS[chooser], rates, fit))
        fits[chooser] = None if fit is None else fit._asdict()
        for size, result, outcome in zip(sizes, own.values(), outcomes, strict=True):
            gain = paired_difference(outcomes[0].tolist(), outcome.tolist())
            rows.append(_row(chooser, size, rates[size], result, gain if size > sizes[0] else None))
    about = f"{'/'.join(Path(config.checkpoint).parts[-2:])}, mode {search.mode}"
    if search.mode == "lookahead":
        about += f", {search.lookahead} turns ahead, {search.execute} kept"
    about += f", temperature {search.temperature:g}"
    write_json(out / "scaling.json", {"config": to_json(config), "fits": fits, "rows": rows})
    draw_scaling(curves, f"Best of N: {about}", out / "scaling.png")
    return write_table(out / "scaling.md", about, curves, rows, search.greedy_first)


def outcomes_of(result: dict[str, Any]) -> list[bool]:
    """Success of each episode, in an order that every evaluation of a study shares."""
    episodes = sorted(result["episodes"], key=lambda e: (e["task"], e["initial_state"]))
    return [bool(episode["success"]) for episode in episodes]


def _rate(result: dict[str, Any]) -> Rate:
    overall = result["overall"]
    low, high = overall["interval"]
    return Rate(overall["successes"], overall["episodes"], low, high, overall["mean_turns"])


def _row(chooser: str, size: int, rate: Rate, result: dict[str, Any], gain: Any) -> dict[str, Any]:
    return {
        "chooser": chooser,
        "best_of": size,
        "success": rate.rate,
        "interval": [rate.low, rate.high],
        "gain": None if gain is None else [gain.mean, gain.low, gain.high],
        "cost_per_turn": result["cost"]["per_turn"],
    }


def write_table(
    path: Path,
    about: str,
    curves: Sequence[ScalingCurve],
    rows: Sequence[dict[str, Any]],
    greedy_first: bool,
) -> Path:
    """The study as Markdown."""
    episodes = next(iter(curves[0].rates.values())).episodes
    first = "the first candidate is greedy" if greedy_first else "all candidates are sampled"
    lines = [
        f"# Best of N: {about}\n",
        f"{episodes} episodes each, {first}; success with Wilson 95 % intervals, gain over the smallest N paired by "
        "episode. Cost is for each turn that was kept.\n",
        "| chosen by | N | success | gain | policy: prefills, chunks | simulated turns | scored | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = (100 * end for end in row["interval"])
        gain = "" if row["gain"] is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(
            *(100 * value for value in row["gain"])
        )  # fmt: skip
        cost = row["cost_per_turn"]
        lines.append(
            f"| {LABELS[row['chooser']]} | {row['best_of']} | {100 * row['success']:.1f} % [{low:.1f}, {high:.1f}] "
            f"| {gain} | {cost['prefills']:.1f}, {cost['action_chunks']:.1f} | {cost['simulator_turns']:.1f} "
            f"| {cost['scored']:.1f} | {cost['seconds']:.3f} |"
        )
    fitted = [curve for curve in curves if curve.fit is not None]
    if fitted:
        lines += [
            "\nsuccess = a + b log2 N, in points; weighted by binomial variance, errors from a bootstrap over "
            "episodes (95 %)\n",
            "| chosen by | a | b, per doubling of N |",
            "|---|---|---|",
        ]
        for curve in fitted:
            fit = curve.fit
            assert fit is not None
            lines.append(
                f"| {curve.label} | {100 * fit.intercept:.1f} ± {100 * fit.intercept_error:.1f} "
                f"| {100 * fit.slope:+.2f} ± {100 * fit.slope_error:.2f} "
                f"[{100 * fit.slope_low:+.2f}, {100 * fit.slope_high:+.2f}] |"
            )
    lines.append("\n![success against the number of candidates](scaling.png)")
    write_text(path, "\n".join(lines) + "\n")
    return path
