"""Test-time scaling: let the policy propose several times, and choose.

vla-rl eval runs/quickstart --best-of 8 --mode lookahead --reward-model runs/reward --json result.json
vla-rl test-time runs/quickstart --search.reward-model runs/reward --out runs/scaling
vla-rl learning-curve runs/first                                   (trained with --run.eval-every 10)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Len, MinLen

from vla_rl.config import ConfigError, EnvConfig, EvalConfig, PolicyConfig, UserError
from vla_rl.config.search import BestOfConfig, ChooserName, ScalingConfig, StudyChooser
from vla_rl.config.serialize import differences, to_json
from vla_rl.envs import make_vector_env
from vla_rl.envs.env import VectorEnv
from vla_rl.envs.registry import benchmark, longest_horizon, no_dense_reward
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.practised import apart
from vla_rl.evaluation.result import evaluate_policy, evaluation_specs, summary
from vla_rl.evaluation.search.best_of import play_best_of
from vla_rl.evaluation.search.branches import Cost
from vla_rl.evaluation.search.choosers import make_chooser
from vla_rl.policies.fingerprint import fingerprint
from vla_rl.policies.policy import Policy
from vla_rl.recipes.evaluate import evaluate_checkpoint, policy_and_env
from vla_rl.report.test_time import LABELS, PLAIN, write_study
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.model import ProcessRewardModel, TrainableRewardModel
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.external import fault, read_json
from vla_rl.runtime.files import require_writable, write_json
from vla_rl.runtime.progress import note
from vla_rl.types import EpisodeSpec


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


def reward_model_of(search: BestOfConfig, suite: str) -> TrainableRewardModel | None:
    """The reward model that `search` needs, if it needs one. UserError for what cannot be chosen by on this suite."""
    if search.chooser == "simulator" and benchmark(suite).dense_reward_max is None:
        raise no_dense_reward(suite)
    if search.chooser != "reward-model" or search.best_of == 1:
        return None
    if not search.reward_model:
        raise UserError(
            "choosing by a process reward model needs its folder: --reward-model runs/reward (from `vla-rl reward "
            "train`). Without one there are --chooser random, success and simulator"
        )
    reward_model = load_reward_model(search.reward_model)
    if search.mode == "action" and not reward_model.sees_actions:
        raise UserError(
            f"mode action needs a reward model that sees actions, the one in {search.reward_model} sees images alone: "
            "train one with --sees-actions, or choose --mode lookahead"
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

    label = f"best of {search.best_of} by {name}" if search.best_of > 1 else "one sampled candidate"
    result, records = evaluate_policy(policy, envs, env, config, label, play)
    result["sampling"] = {"mode": "best-of", "temperature": search.temperature}
    result["search"] = to_json(search)
    per_turn = costs[0].per_turn(result["wall_seconds"])
    result["cost"] = {
        "total": vars(costs[0]), "per_turn": per_turn, "simulated_turns": simulated_turns(records),
    }  # fmt: skip
    return result, records


def simulated_turns(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """What the episodes have spent, discarded turns included: all together, and the mean, least and most of one."""
    spent = [record.simulated_turns for record in records]
    return {
        "total": sum(spent),
        "mean": sum(spent) / len(spent),
        "least": min(spent),
        "most": max(spent),
        "episodes": [
            [record.spec.task, record.spec.initial_state, record.simulated_turns]
            for record in records
        ],
    }


# --------------------------------------------------------------------------------------------------
# Success against N

EQUAL: StudyChooser = "trajectories"
"""What refinement is compared with: it is played after refinement, whose simulated turns it is given."""
MOST = 65_536
"""Candidates that a budget of turns is never short of."""
WAYS: dict[StudyChooser, tuple[ChooserName, bool]] = {
    "reward-model-alone": ("reward-model", False),
    "success": ("success", True),
    "reward-model": ("reward-model", True),
    "simulator": ("simulator", True),
    "random": ("random", True),
    "trajectories": ("reward-model", True),
}
"""What the study compares -> chooser, and whether success seen ahead is taken without asking it."""


def scaling_study(config: ScalingConfig, env: EnvConfig | None = None) -> Path:
    """Evaluate with every number of candidates and every chooser; write the table and the picture.

    Plain play is evaluated as well, greedy and sampled. Evaluations that the folder holds already are taken from there,
    so that a study that was stopped goes on; UserError for one of another policy, reward model or setting. Returns the
    path of scaling.md.
    """
    out = require_writable(Path(config.out), "folder")
    policy, env, trained_in = policy_and_env(
        Path(config.checkpoint), config.protocol.suite, env, PolicyConfig(), config.workers, 0
    )
    choosers, reward_model = available_choosers(config, env.suite)
    (out / "evaluations").mkdir(parents=True, exist_ok=True)
    made_by = {"policy": policy.fingerprint(), "environment": to_json(env)}
    scored_by = None if reward_model is None else fingerprint_of_reward_model(reward_model)
    results: dict[tuple[str, int], dict[str, Any]] = {}
    with use_threads(1), make_vector_env(env) as envs:
        for name, size, planned in planned_searches(config, choosers):
            search = planned
            if name == EQUAL:
                alone = results["reward-model-alone", size]
                search = at_equal_turns(planned, alone, longest_horizon(env))
            asks_model = search.chooser == "reward-model"
            origin = made_by | {"reward_model": scored_by if asks_model else None}
            file = out / "evaluations" / f"{name}-{size}.json"
            result = stored_evaluation(file, config, search, env, origin)
            if result is None:
                result, records = evaluate_search(
                    policy, envs, env, config.protocol, search, reward_model
                )
                result |= {"checkpoint": config.checkpoint, "origin": origin}
                result["practice"] = apart(records, trained_in, summary)
                write_json(file, result)
            results[name, size] = result
    return write_study(config, results)


def planned_searches(
    config: ScalingConfig, choosers: Sequence[StudyChooser]
) -> Iterator[tuple[str, int, BestOfConfig]]:
    """Every evaluation of a study, the cheap ones first: what it is called, N, and how it is played."""
    for name in PLAIN:
        # whoever chooses, with one candidate there is nothing to choose
        yield (
            name,
            1,
            replace(
                config.search,
                best_of=1,
                turn_budget=0,
                chooser="random",
                reward_model="",
                greedy_first=name == "greedy",
            ),
        )
    for size in sorted(set(config.sizes) - {1}):
        for name in choosers:
            chooser, success_ahead = WAYS[name]
            folder = config.search.reward_model if chooser == "reward-model" else ""
            yield (
                name,
                size,
                replace(
                    config.search,
                    best_of=size,
                    chooser=chooser,
                    success_ahead=success_ahead,
                    reward_model=folder,
                ),
            )


def at_equal_turns(
    refinement: BestOfConfig, refined: Mapping[str, Any], horizon: int
) -> BestOfConfig:
    """Best of whole trajectories with as many simulated turns an episode as refinement has taken in the mean.

    They are a whole number, and at least one episode's: `cost.simulated_turns` of both says what was spent.
    """
    spent = round(refined["cost"]["simulated_turns"]["mean"])
    return replace(
        refinement,
        mode="trajectory",
        best_of=MOST,
        temperatures=(),
        trajectory_turns=max(refinement.trajectory_turns, horizon),
        turn_budget=refinement.turn_budget or max(spent, horizon),
    )


def available_choosers(
    config: ScalingConfig, suite: str
) -> tuple[list[StudyChooser], TrainableRewardModel | None]:
    """The choosers that can be had, and the reward model if one of them asks it."""
    chosen: list[StudyChooser] = []
    reward_model: TrainableRewardModel | None = None
    for name in _distinct(config):
        chooser, _ = WAYS[name]
        missing = ""
        if chooser == "reward-model" and not config.search.reward_model:
            missing = "no reward model was given"
        if chooser == "simulator" and benchmark(suite).dense_reward_max is None:
            missing = f"{benchmark(suite).title} has no dense reward"
        if missing:
            note(f"left out: choosing by {LABELS[name]}, as {missing}")
            continue
        if chooser == "reward-model" and reward_model is None:
            search = replace(config.search, chooser=chooser, best_of=max(*config.sizes, 2))
            reward_model = reward_model_of(search, suite)
        chosen.append(name)
    if not chosen:
        raise UserError(
            f"scaling: none of the choosers {', '.join(config.choosers)} can be had on {suite}: give a reward model "
            "(--search.reward-model), or add random or success"
        )
    return chosen, reward_model


def _distinct(config: ScalingConfig) -> list[StudyChooser]:
    """The choosers of a study. Only lookahead sees success ahead: elsewhere the reward model is always alone."""
    wanted: Sequence[StudyChooser] = config.choosers
    if config.search.mode != "lookahead":
        wanted = ["reward-model-alone" if name == "reward-model" else name for name in wanted]
    distinct: list[StudyChooser] = list(dict.fromkeys(name for name in wanted if name != EQUAL))
    if EQUAL not in wanted:
        return distinct
    if config.search.mode != "refine" or "reward-model-alone" not in distinct:
        raise ConfigError(
            "choosers: trajectories is what refinement by the reward model is compared with. It needs search.mode "
            f"refine (now {config.search.mode}) and the chooser reward-model-alone beside it"
        )
    return [*distinct, EQUAL]


def fingerprint_of_reward_model(reward_model: TrainableRewardModel) -> str:
    """The reward model's content: weights, and what it was trained for."""
    return fingerprint(reward_model.model, json.dumps(to_json(reward_model.description)))


@dataclass(frozen=True)
class _Episode:
    task: str
    initial_state: int
    success: bool


@dataclass(frozen=True)
class _Overall:
    successes: Annotated[int, Ge(0)]
    episodes: Annotated[int, Ge(1)]
    interval: Annotated[list[float], Len(2, 2)]
    mean_turns: float


@dataclass(frozen=True)
class _Spent:
    total: Annotated[int, Ge(0)]
    mean: Annotated[float, Ge(0)]
    least: Annotated[int, Ge(0)]
    most: Annotated[int, Ge(0)]


@dataclass(frozen=True)
class _Cost:
    per_turn: dict[str, float]
    simulated_turns: _Spent | None = None  # of before


@dataclass(frozen=True)
class _Stored:
    """What is needed of an evaluation in the study's folder."""

    suite: str
    horizon: int
    seed: int
    tasks: dict[str, Any]
    overall: _Overall
    episodes: Annotated[list[_Episode], MinLen(1)]
    search: dict[str, Any]
    cost: _Cost
    origin: dict[str, Any] | None = None


def stored_evaluation(
    file: Path,
    config: ScalingConfig,
    search: BestOfConfig,
    env: EnvConfig,
    origin: dict[str, Any],
) -> dict[str, Any] | None:
    """What an earlier study left in `file`, if it did; UserError if it was evaluated otherwise."""
    if not file.is_file():
        return None
    remedy = "Remove it, or choose another folder (--out)."
    stored = read_json(file, _Stored, remedy=remedy)
    if stored.origin is None:
        raise UserError(
            f"{file} does not say of which weights it is, as evaluations of earlier versions do not. {remedy}"
        )
    specs = evaluation_specs(env, config.protocol, list(stored.tasks))
    pairs = [
        ("seed", stored.seed, config.protocol.seed),
        (
            "episodes",
            [(e.task, e.initial_state) for e in stored.episodes],
            [(s.task, s.initial_state) for s in specs],
        ),
    ]
    different = [name for name, found, asked in pairs if found != asked]
    different += _changed("", _decisive(stored.origin), _decisive(origin))
    # the folder of the reward model may be another one: its content counts, and is part of the origin
    # what an earlier version did not know yet was at its default
    kept = to_json(BestOfConfig()) | stored.search | {"reward_model": ""}
    wanted = to_json(search) | {"reward_model": ""}
    different += _changed("search.", kept, wanted)
    if different:
        raise UserError(f"{file} was evaluated with another {', '.join(different)}. {remedy}")
    refined = search.mode == "refine" and search.best_of > 1
    if refined and stored.cost.simulated_turns is None:
        raise UserError(
            f"{file} is of an earlier version, whose refinement compared trajectories by the mean of log-odds, not of "
            f"probabilities. {remedy}"
        )
    missing = sorted(COSTS - set(stored.cost.per_turn))
    if missing:
        raise fault(
            file, "cost.per_turn", f"the keys {', '.join(missing)}", stored.cost.per_turn, remedy
        )
    return read_json(file, remedy=remedy)


COSTS = frozenset({"prefills", "action_chunks", "simulator_turns", "scored", "seconds"})
INDECISIVE = ("num_envs", "num_workers", "step_timeout", "max_restarts")
"""Settings of an environment that change no outcome."""


def _decisive(origin: dict[str, Any]) -> dict[str, Any]:
    played = origin.get("environment")
    if not isinstance(played, dict):
        return origin
    kept = {name: value for name, value in played.items() if name not in INDECISIVE}
    return origin | {"environment": kept}


def _changed(prefix: str, found: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    return [f"{prefix}{name}" for name in differences(found, asked)]
