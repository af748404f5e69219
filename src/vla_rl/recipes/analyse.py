"""Say what practice changed: how far actions spread, how long episodes take, and how they fail.

vla-rl analyse runs/first
vla-rl analyse runs/first --against runs/sft
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.config import EnvConfig, EvalConfig, PolicyConfig, TrainConfig, UserError
from vla_rl.config.analysis import AnalysisConfig
from vla_rl.config.serialize import to_json
from vla_rl.envs import make_vector_env
from vla_rl.envs.defaults import evaluation_protocol, require_same_robot
from vla_rl.envs.env import VectorEnv
from vla_rl.envs.registry import benchmark, task_names
from vla_rl.envs.trace import TracedGoal
from vla_rl.evaluation.coverage import NEIGHBOURS, Visits, sampled_tokens, single_actions, visit
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.failures import classify
from vla_rl.evaluation.result import evaluate_policy, evaluation_specs
from vla_rl.evaluation.traces import trace_episode
from vla_rl.policies.policy import Policy
from vla_rl.policies.shardable import playing
from vla_rl.recipes.loading import load_with_env
from vla_rl.recipes.pictures_of_failures import film_strips, kind_videos, strips_in_order
from vla_rl.report.analysis.coverage import Actions, coverage_view
from vla_rl.report.analysis.failures import agreement, kinds_not_told, read_labels, stage_failures
from vla_rl.report.analysis.lengths import lengths_of
from vla_rl.report.analysis.record import (
    COVERAGE,
    FAILURES,
    FOLDER,
    LENGTHS,
    Analysis,
    Coverage,
    CoverageView,
    FailedEpisode,
    Failures,
    Lengths,
    Stage,
    write_analysis,
)
from vla_rl.report.analysis.words import markdown
from vla_rl.report.figures.analysis import DRAWN, draw_coverage, draw_failures, draw_lengths
from vla_rl.report.run_data import Run, read_run
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.files import require_writable, write_text
from vla_rl.runtime.hub import hub_id
from vla_rl.runtime.locate import locate_policy
from vla_rl.runtime.progress import progress
from vla_rl.runtime.provenance import versions
from vla_rl.runtime.run_folder import read_config, saved_checkpoints, training_run
from vla_rl.types import EpisodeSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Played:
    """What one policy did on the initial states of the protocol."""

    records: list[EpisodeRecord]  # greedy
    visits: Visits  # sampled


def analyse(config: AnalysisConfig) -> Path:
    """Analyse a training run into its folder `analysis`; returns the path of analysis.md.

    UserError, before anything is played, for a folder that is no training run, a policy that cannot play its suite, a
    file of labels that cannot be read, and where nothing can be written.
    """
    folder = training_run(config.run)
    trained = read_config(folder, TrainConfig)
    out = require_writable(folder / FOLDER, "folder")
    labels = read_labels(config.labels) if config.labels is not None else None
    run = read_run(folder)
    notes: list[str] = []
    env = replace(trained.env, num_workers=config.workers or trained.env.num_workers)
    protocol = evaluation_protocol(replace(trained.eval, temperature=0.0, seed=config.seed), env)
    if config.episodes_per_task is not None:
        protocol = replace(protocol, episodes_per_task=config.episodes_per_task)
    specs = evaluation_specs(env, protocol, task_names(env.suite))
    policies, names = _policies(config, trained, folder, notes)
    lengths = _lengths(run, config, out, notes)
    coverage = failures = agreed = None
    if policies:
        played = _play(policies, env, protocol, specs, trained.rollout.temperature, config.seed)
        coverage = _coverage(policies, played, specs, trained, config.seed, out, notes)
        failures, strips = _failures(policies, played, env, config, out)
        if labels is not None:
            agreed = agreement(labels, strips, str(config.labels))
    each = len(specs) // len(task_names(env.suite))
    analysis = Analysis(
        1, env.suite, names.get("after", ""), names.get("before"), protocol.split, each,
        coverage, lengths, failures, agreed, tuple(notes),
    )  # fmt: skip
    origin = {"settings": to_json(config), "versions": versions(benchmark(env.suite).packages)}
    write_analysis(out, analysis, origin)
    write_text(out / "analysis.md", markdown(analysis))
    return out / "analysis.md"


# -- policies ----------------------------------------------------------------------------------------


def _policies(
    config: AnalysisConfig, trained: TrainConfig, folder: Path, notes: list[str]
) -> tuple[dict[Stage, Policy], dict[Stage, str]]:
    """The policies before and after practice, as far as there are any, and what they are called."""
    policies: dict[Stage, Policy] = {}
    names: dict[Stage, str] = {}
    against = config.against or _start_of(trained, folder, notes)
    if config.against and _same_policy(config.against, folder):
        raise UserError(
            f"--against {config.against} is the policy that {folder} ends with: expected another one, such as the "
            "policy that it started from (the default)"
        )
    if against:
        policies["before"] = _load(against, trained, "before practice")
        names["before"] = against
    if saved_checkpoints(folder):
        policies["after"] = _load(str(folder), trained, "after practice")
        names["after"] = str(folder)
    else:
        notes.append(
            "The run has no checkpoint yet: coverage and failures are left out until it has one."
        )
        return {}, names
    return policies, names


def _same_policy(against: str, run: Path) -> bool:
    if hub_id(Path(against)) is not None or not saved_checkpoints(run):
        return False
    return locate_policy(Path(against))[0].resolve() == locate_policy(run)[0].resolve()


def _start_of(trained: TrainConfig, folder: Path, notes: list[str]) -> str:
    """Where the policy lies that the run started from; empty, with a note, if it is not there any more.

    A relative path is looked for from here and from the folders above the run, since a run may be analysed elsewhere
    than it was started.
    """
    start = trained.policy.checkpoint
    if not start:
        notes.append("The run started from random weights: there is no policy to compare with.")
        return ""
    if hub_id(Path(start)) is not None:
        return start
    for above in (Path(), *folder.resolve().parents):
        if (above / start).exists():
            return str(above / start)
    notes.append(
        f"The policy that the run started from ({start}) is not there any more, so that nothing is compared: name it "
        "with --against."
    )
    return ""


def _load(where: str, trained: TrainConfig, what: str) -> Policy:
    """UserError unless the policy can play in the run's environment."""
    env, own = trained.env, trained.policy
    asked = PolicyConfig(
        kind=own.kind, base=own.base, unnorm_key=own.unnorm_key, dtype=own.dtype, images=own.images,
        gripper=own.gripper, device=own.device, decode_graphs=own.decode_graphs,
    )  # fmt: skip
    # what it says of itself decides where it can play, so it is not told a suite
    policy, suite, trained_in = load_with_env(Path(where), asked, "")
    require_same_robot(policy.action_dim, env.suite)
    if trained_in is not None and not set(task_names(suite)) & set(task_names(env.suite)):
        raise UserError(
            f"{where}: expected a policy of {env.suite}, the run's suite, got one of {suite}, with which it shares no "
            "task: name the policy that the run started from"
        )
    if policy.action_chunk != env.action_chunk:
        raise UserError(
            f"{where}: expected a policy that decides {env.action_chunk} actions a turn, as the run's, got one that "
            f"decides {policy.action_chunk}: their turns cannot be compared"
        )
    if policy.image_size != env.image_size and not policy.resizes_images:
        raise UserError(
            f"{where}: expected a policy that sees images of {env.image_size} pixels, as the run's, got one of "
            f"{policy.image_size}: they would not see the same"
        )
    logger.info("%s: %s", what, where)
    return policy


# -- playing -----------------------------------------------------------------------------------------


def _play(
    policies: Mapping[Stage, Policy],
    env: EnvConfig,
    protocol: EvalConfig,
    specs: Sequence[EpisodeSpec],
    temperature: float,
    seed: int,
) -> dict[Stage, Played]:
    """Each policy on every initial state, greedily and sampled."""
    played: dict[Stage, Played] = {}
    with use_threads(1), make_vector_env(env) as envs:
        for stage, policy in policies.items():
            _, records = evaluate_policy(policy, envs, env, protocol, f"play {stage} greedy")
            played[stage] = Played(records, _visits(stage, policy, envs, specs, temperature, seed))
    return played


def _visits(
    stage: Stage,
    policy: Policy,
    envs: VectorEnv,
    specs: Sequence[EpisodeSpec],
    temperature: float,
    seed: int,
) -> Visits:
    with progress(f"play {stage} sampled", total=len(specs)) as bar, playing(policy):
        return visit(policy, envs, specs, temperature, seed, lambda _: bar.advance(1))


# -- coverage and length -----------------------------------------------------------------------------


def _coverage(
    policies: Mapping[Stage, Policy],
    played: Mapping[Stage, Played],
    specs: Sequence[EpisodeSpec],
    trained: TrainConfig,
    seed: int,
    out: Path,
    notes: list[str],
) -> Coverage | None:
    own: dict[Stage, Actions] = {
        stage: single_actions(policy, played[stage].visits.tokens, played[stage].visits)
        for stage, policy in policies.items()
    }
    sets: dict[str, dict[Stage, Actions]] = {"own": own}
    if len(policies) > 1:
        sets["same"] = {
            stage: _in_all_states(policy, played, specs, trained.rollout.temperature, seed)
            for stage, policy in policies.items()
        }
    views: list[CoverageView] = []
    try:
        views = [coverage_view(n, a, len(specs), seed) for n, a in sets.items()]
    except ValueError as error:  # a handful of actions, or all of them one and the same
        notes.append(f"Coverage cannot be estimated from so few different actions ({error}).")
        return None
    spreads = [spread for view in views for spread in (view.before, view.after) if spread]
    if any(spread.volume.value > 1 for spread in spreads):
        notes.append(
            f"A volume of more than 100 % comes of few samples ({min(s.samples for s in spreads)}): their entropy is "
            "an estimate. Read the intervals, or analyse more episodes."
        )
    drawn: dict[Stage, Any] = {stage: actions for stage, (actions, _) in own.items()}
    names = [f"action {i}" for i in range(own["after"][0].shape[1])]
    if len(names) > DRAWN:
        notes.append(
            f"The picture of action coverage shows the {DRAWN} of {len(names)} numbers of an action that vary most. In "
            "so many dimensions nearest neighbours are far: entropies are coarse, and their differences less so."
        )
    draw_coverage(drawn, names, out / COVERAGE)
    return Coverage(trained.rollout.temperature, len(specs), NEIGHBOURS, tuple(views))


def _in_all_states(
    policy: Policy,
    played: Mapping[Stage, Played],
    specs: Sequence[EpisodeSpec],
    temperature: float,
    seed: int,
) -> Actions:
    """What a policy decides in the states that any of the policies came to."""
    parts = []
    with use_threads(1), playing(policy):
        for other in played.values():
            tokens = sampled_tokens(policy, other.visits, specs, temperature, seed)
            parts.append(single_actions(policy, tokens, other.visits))
    return np.concatenate([a for a, _ in parts]), np.concatenate([e for _, e in parts])


def _lengths(run: Run, config: AnalysisConfig, out: Path, notes: list[str]) -> Lengths | None:
    notes += run.problems
    lengths = lengths_of(run, config.plateau_window, config.plateau_tolerance)
    if lengths is None:
        notes.append("metrics.jsonl holds no episode length: its course over training is left out.")
        return None
    draw_lengths(run, lengths, out / LENGTHS)
    return lengths


# -- failures ----------------------------------------------------------------------------------------


def _failures(
    policies: Mapping[Stage, Policy],
    played: Mapping[Stage, Played],
    env: EnvConfig,
    config: AnalysisConfig,
    out: Path,
) -> tuple[Failures, dict[str, FailedEpisode]]:
    failed, goals = _classified(policies, played, env)
    stages = tuple(
        stage_failures(stage, played[stage].records, [e for e, _ in failed]) for stage in policies
    )
    videos = kind_videos(failed, policies, env, out / "videos") if config.videos else ()
    strips = strips_in_order(failed, config.seed)
    if config.strips:
        shown = dict(list(strips.items())[: config.strips])
        film_strips(shown, policies, env, out / "strips")
    found = Failures(stages, tuple(e for e, _ in failed), videos, kinds_not_told(goals))
    if any(stage.failed for stage in stages):
        draw_failures(found, out / FAILURES)
    return found, {name: episode for name, (episode, _) in strips.items()}


def _classified(
    policies: Mapping[Stage, Policy], played: Mapping[Stage, Played], env: EnvConfig
) -> tuple[list[tuple[FailedEpisode, EpisodeRecord]], list[TracedGoal]]:
    """Every failed episode with its kind, and the goals that were traced; none where no simulator tells of any."""
    everything: list[tuple[Stage, EpisodeRecord]] = [
        (s, r) for s in policies for r in played[s].records if not r.success
    ]
    failed: list[tuple[FailedEpisode, EpisodeRecord]] = []
    goals: list[TracedGoal] = []
    witness: Any = benchmark(env.suite).make_envs(env, 1)[0]
    with closing(witness), progress("name the failures", total=len(everything)) as bar:
        for stage, record in everything:
            trace = trace_episode(witness, record, policies[stage])
            kind = "not told" if trace is None else classify(trace)
            goals += [] if trace is None else [goal.goal for goal in trace.goals]
            spec = record.spec
            failed.append((FailedEpisode(stage, spec.task, spec.initial_state, kind), record))
            bar.advance(1)
    return failed, goals
