"""How often a policy succeeds from the way of demonstrations: success against the share of the way that is behind it.

    vla-rl eval runs/sft --starts runs/demos --fractions 0 0.1 0.2 0.4 0.6 0.8 --json starts.json

What is to be known before `starts.dataset` is used in practice: from where the policy succeeds now and then. The states
are those of training, and whoever is put there is helped: this is no evaluation of the policy on its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.config import EnvConfig, EvalConfig, PolicyConfig, UserError, require
from vla_rl.envs import make_vector_env
from vla_rl.envs.defaults import evaluation_protocol
from vla_rl.envs.registry import as_played, benchmark, longest_horizon
from vla_rl.evaluation.episodes import EpisodeRecord, play_each_once
from vla_rl.evaluation.result import summary
from vla_rl.evaluation.videos import record_videos
from vla_rl.policies.policy import Policy
from vla_rl.recipes.evaluate import policy_and_env, require_outputs
from vla_rl.rollout.starting import StartingVectorEnv, StartStates
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.files import write_json
from vla_rl.runtime.progress import progress
from vla_rl.runtime.provenance import versions
from vla_rl.types import EpisodeSpec, Start

FORMAT = 1


def success_by_start(
    checkpoint: Path,
    dataset: str,
    fractions: Sequence[float],
    config: EvalConfig,
    json_path: Path | None = None,
    videos: Path | None = None,
    workers: int = 0,
    policy_config: PolicyConfig | None = None,
    horizon: int = 0,
) -> dict[str, Any]:
    """Play the policy at `checkpoint` from each share of each demonstration's way, and return the counts.

    Each of `config.episodes_per_task` demonstrations of a task (by default as many as the protocol has, at most all) is
    played once from each of `fractions`; 0 is its initial state. The result's `starts` has a row for each task and
    share, with a Wilson interval. It is written to `json_path`, which `starts.measured` reads.

    UserError for a dataset that cannot be started from (`StartStates`), one with fewer demonstrations than asked for,
    and for an output that could not be written.
    """
    require(len(fractions) > 0, "--fractions needs at least one share of the way, such as 0.5")
    require_outputs(json_path, videos, config, frozenset({"episodes", "starts", "dataset"}))
    policy, env, _ = policy_and_env(
        checkpoint, config.suite, None, policy_config or PolicyConfig(), workers, horizon
    )
    states = StartStates(dataset, env)
    specs = starts_to_play(states, sorted({*fractions}), config)
    started = time.perf_counter()
    with use_threads(1), make_vector_env(env) as own:
        states.require_restorable(own)
        envs = StartingVectorEnv(own, states)
        records = _play(policy, envs, [spec for _, spec in specs], config)
        errors = envs.infrastructure_errors
    result = _result([fraction for fraction, _ in specs], records, env, config) | {
        "checkpoint": str(checkpoint),
        "dataset": dataset,
        "infrastructure_errors": errors,
        "wall_seconds": time.perf_counter() - started,
    }
    if json_path is not None:
        write_json(json_path, result)
    if videos is not None and config.videos > 0:
        record_videos(records, policy, env, config.videos, videos, begin=states.begin)
    return result


def starts_to_play(
    states: StartStates, fractions: Sequence[float], config: EvalConfig
) -> list[tuple[float, EpisodeSpec]]:
    """Every (share, start) once: the first demonstrations of each task, from each share."""
    asked = config.episodes_per_task
    most = evaluation_protocol(config, states.env).episodes_per_task
    assert most is not None
    plan: list[tuple[float, EpisodeSpec]] = []
    for task, ways in states.ways().items():
        if asked is not None and asked > len(ways):
            raise UserError(
                f"--episodes-per-task {asked} asks for more than the {len(ways)} demonstrations of {task!r} in "
                f"{states.snapshots.folder}: each is played once from every share. Ask for fewer, or collect more"
            )
        for fraction in fractions:
            for way in ways[:most]:
                frame = way.at(fraction)
                start = Start(way.demonstration, frame) if frame else None
                plan.append((fraction, EpisodeSpec(task, way.initial_state, start)))
    return plan


def _play(
    policy: Policy, envs: StartingVectorEnv, specs: Sequence[EpisodeSpec], config: EvalConfig
) -> list[EpisodeRecord]:
    done: list[bool] = []
    with progress("evaluate from the way of demonstrations", total=len(specs)) as bar:

        def on_episode(record: EpisodeRecord) -> None:
            done.append(record.success)
            bar.advance(1, success=float(np.mean(done)))

        return play_each_once(
            policy, envs, specs, temperature=config.temperature, seed=config.seed, on_episode=on_episode
        )  # fmt: skip


def _result(
    fractions: Sequence[float],
    records: Sequence[EpisodeRecord],
    env: EnvConfig,
    config: EvalConfig,
) -> dict[str, Any]:
    starts: dict[str, list[dict[str, Any]]] = {}
    for task in dict.fromkeys(record.spec.task for record in records):
        for fraction in dict.fromkeys(fractions):
            own = [
                record
                for share, record in zip(fractions, records, strict=True)
                if share == fraction and record.spec.task == task
            ]
            starts.setdefault(task, []).append({"fraction": fraction} | summary(own))
    return {
        "format": FORMAT,
        "suite": env.suite,
        "starts": starts,
        "horizon": longest_horizon(env),
        "action_repeat": as_played(env).action_repeat,
        "action_chunk": env.action_chunk,
        "temperature": config.temperature,
        "seed": config.seed,
        "episodes": [
            {
                "task": record.spec.task,
                "fraction": share,
                "initial_state": record.spec.initial_state,
                "demonstration": None if record.spec.start is None else record.spec.start.demonstration,
                "frame": 0 if record.spec.start is None else record.spec.start.frame,
                "success": record.success,
                "turns": record.turns,
            }
            for share, record in zip(fractions, records, strict=True)
        ],
        "versions": versions(benchmark(env.suite).packages),
    }  # fmt: skip
