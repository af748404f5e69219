"""Evaluate a policy: each (task, initial state) exactly once, with intervals, as JSON.

vla-rl eval runs/quickstart --suite mt5 --split held-out --episodes-per-task 30 --json result.json --videos 2
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.config import EnvConfig, EvalConfig, PolicyConfig, TrainConfig, UserError
from vla_rl.config.serialize import from_json
from vla_rl.envs import ProcessVectorEnv, split_initial_states
from vla_rl.envs.defaults import (
    evaluation_env,
    evaluation_protocol,
    protocol_policy,
    require_same_robot,
)
from vla_rl.envs.env import VectorEnv
from vla_rl.functional import wilson_interval
from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies.policy import Policy
from vla_rl.recipes.videos import record_videos
from vla_rl.rollout import Collector, EpisodeRecord, play_each_once
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.files import read_json, write_json
from vla_rl.runtime.hub import hub_id
from vla_rl.runtime.memory import keep_freed_memory
from vla_rl.runtime.progress import progress
from vla_rl.runtime.provenance import versions
from vla_rl.runtime.run_folder import ENVIRONMENT_OF_RUN, Run, training_run
from vla_rl.types import EpisodeSpec

FORMAT = 1
Play = Callable[..., list[EpisodeRecord]]
"""Plays episodes as `play_each_once` does."""
Evaluate = Callable[
    [OpenVLAPolicy, VectorEnv, EnvConfig, EvalConfig], tuple[dict[str, Any], list[EpisodeRecord]]
]
"""`evaluate_policy`, or something that plays otherwise."""


def evaluate_checkpoint(
    checkpoint: Path,
    config: EvalConfig,
    env: EnvConfig | None = None,
    json_path: Path | None = None,
    videos: Path | None = None,
    workers: int = 0,
    policy_config: PolicyConfig | None = None,
    horizon: int = 0,
    evaluate: Evaluate | None = None,
) -> dict[str, Any]:
    """Evaluate the policy found at `checkpoint`: a run, one of its checkpoints, a policy folder or a hub id.

    `env` defaults to what the policy was trained in, or to the protocol of `config.suite`; `horizon` (turns), if given,
    takes the place of its. Returns the result that is also written to `json_path`; pictures of `config.videos` episodes
    per task go to the folder `videos`. `evaluate` takes the place of plain play (`evaluate_policy`).
    """
    policy, env = policy_and_env(
        checkpoint, config.suite, env, policy_config or PolicyConfig(), workers, horizon
    )
    with use_threads(1), ProcessVectorEnv(env) as envs:
        result, records = (evaluate or evaluate_policy)(policy, envs, env, config)
    result["checkpoint"] = str(checkpoint)
    if json_path is not None:
        write_json(json_path, result)
    if videos is not None and config.videos > 0:
        record_videos(records, policy, env, config.videos, videos)
    return result


def policy_and_env(
    checkpoint: Path,
    suite: str,
    env: EnvConfig | None,
    policy_config: PolicyConfig,
    workers: int,
    horizon: int,
) -> tuple[OpenVLAPolicy, EnvConfig]:
    """The policy found at `checkpoint`, and where it is evaluated: see `evaluate_checkpoint`."""
    keep_freed_memory()
    folder, trained_in = locate_policy(checkpoint)
    suite = suite or (env or trained_in or EnvConfig()).suite
    chosen = protocol_policy(policy_config, suite, folder)
    policy = OpenVLAPolicy.from_checkpoint(folder, replace(chosen, checkpoint=str(folder)))
    require_same_robot(policy.action_dim, suite)
    model = policy.description.model
    env = evaluation_env(
        suite,
        env or trained_in,
        model.image_size,
        model.pictures.resize != "none",
        policy.action_chunk,
    )
    env = replace(env, num_workers=workers or env.num_workers, horizon=horizon or env.horizon)
    return policy, env


def evaluate_policy(
    policy: Policy,
    envs: VectorEnv,
    env: EnvConfig,
    config: EvalConfig,
    label: str = "evaluate",
    play: Play = play_each_once,
) -> tuple[dict[str, Any], list[EpisodeRecord]]:
    """Play every (task, initial state) of the protocol once; returns the result and its episodes.

    play: how the episodes are played, if not plainly (called like `play_each_once`).
    """
    started, errors_before = time.perf_counter(), envs.infrastructure_errors
    specs = evaluation_specs(env, config, envs.tasks)
    with progress(label, total=len(specs)) as bar:
        done: list[bool] = []

        def on_episode(record: EpisodeRecord) -> None:
            done.append(record.success)
            bar.advance(1, success=float(np.mean(done)))

        records = play(
            policy,
            envs,
            specs,
            temperature=config.temperature,
            seed=config.seed,
            on_episode=on_episode,
        )
    errors = envs.infrastructure_errors - errors_before
    result = evaluation_result(records, env, config, errors, time.perf_counter() - started)
    return result, records


def evaluation_specs(env: EnvConfig, config: EvalConfig, tasks: Sequence[str]) -> list[EpisodeSpec]:
    """Every (task, initial state) of the protocol, once."""
    return [EpisodeSpec(task, i) for i in initial_states_of(env, config) for task in tasks]


def evaluation_result(
    records: Sequence[EpisodeRecord],
    env: EnvConfig,
    config: EvalConfig,
    infrastructure_errors: int,
    seconds: float,
) -> dict[str, Any]:
    """An evaluation as JSON values."""
    config = evaluation_protocol(config, env)
    tasks = dict.fromkeys(r.spec.task for r in records)
    return {
        "format": FORMAT,
        "checkpoint": "",
        "suite": env.suite,
        "split": config.split,
        "tasks": {task: summary([r for r in records if r.spec.task == task]) for task in tasks},
        "overall": summary(records),
        "horizon": env.horizon,
        "action_repeat": env.action_repeat,
        "action_chunk": env.action_chunk,
        "sampling": {
            "mode": "sampled" if config.temperature > 0 else "greedy",
            "temperature": config.temperature,
        },
        "seed": config.seed,
        "initial_states": initial_states_of(env, config),
        "episodes": [
            {
                "task": r.spec.task,
                "initial_state": r.spec.initial_state,
                "success": r.success,
                "turns": r.turns,
                "simulator_steps": r.simulator_steps,
            }
            for r in records
        ],
        "infrastructure_errors": infrastructure_errors,
        "versions": versions(),
        "wall_seconds": seconds,
    }


def initial_states_of(env: EnvConfig, config: EvalConfig) -> list[int]:
    """The numbered initial states to evaluate on; an error if the split has fewer than asked for."""
    config = evaluation_protocol(config, env)
    assert config.episodes_per_task is not None
    train_states, held_out = split_initial_states(env.initial_states, env.held_out)
    states = {"held-out": held_out, "train": train_states, "all": np.arange(env.initial_states)}[
        config.split
    ]
    if config.episodes_per_task > len(states):
        raise UserError(
            f"--episodes-per-task {config.episodes_per_task} asks for more than the {len(states)} initial "
            f"states of the {config.split} split: each is played exactly once. Ask for fewer, or raise "
            f"{'env.initial_states' if config.split == 'all' else 'env.held_out'}"
        )
    return [int(i) for i in states[: config.episodes_per_task]]


def summary(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Counts, success rate with its Wilson 95 % interval, and mean lengths."""
    successes, episodes = sum(r.success for r in records), len(records)
    low, high = wilson_interval(successes, episodes)
    return {
        "successes": successes,
        "episodes": episodes,
        "success_rate": successes / episodes,
        "interval": [low, high],
        "mean_turns": float(np.mean([r.turns for r in records])),
        "mean_simulator_steps": float(np.mean([r.simulator_steps for r in records])),
    }


def locate_policy(checkpoint: Path) -> tuple[Path, EnvConfig | None]:
    """Find the policy in a run (its newest checkpoint), a checkpoint or a policy folder, and its run's environment.

    Ids of hub repositories are returned as they are.
    """
    if hub_id(checkpoint) is not None:
        return checkpoint, None
    if not checkpoint.exists():
        raise UserError(
            f"{checkpoint} does not exist: expected a run folder, a checkpoint or a policy folder"
        )
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} is a file: expected a run folder, a checkpoint or a policy folder"
        )
    checkpoint = training_run(checkpoint)
    env = next(
        (found for f in (checkpoint, *checkpoint.parents[:3]) if (found := _env_of_run(f))), None
    )
    if (checkpoint / "checkpoints").is_dir():
        saved = sorted((checkpoint / "checkpoints").glob("iteration-*/policy"))
        if not saved:
            raise UserError(
                f"{checkpoint} is a run without a checkpoint yet: let it train, or give a policy folder"
            )
        return saved[-1], env
    if (checkpoint / "policy" / "config.json").is_file():
        return checkpoint / "policy", env
    if any((checkpoint / name).is_file() for name in ("config.json", "adapter_config.json")):
        return checkpoint, env
    raise UserError(
        f"{checkpoint} holds no policy: expected config.json with model.safetensors, adapter_config.json, a folder "
        "`policy`, or a run"
    )


def _env_of_run(folder: Path) -> EnvConfig | None:
    """The environment of the training run or the fine-tuning in `folder`, if it is known."""
    if (folder / ENVIRONMENT_OF_RUN).is_file():
        return from_json(EnvConfig, read_json(folder / ENVIRONMENT_OF_RUN))
    if not (folder / "run.json").is_file() or not (folder / "config.json").is_file():
        return None
    saved = json.loads((folder / "config.json").read_text())
    return from_json(EnvConfig, saved["env"]) if "env" in saved else None


def evaluate_before_or_after(
    label: str, run: Run, policy: Policy, envs: VectorEnv, config: TrainConfig
) -> None:
    """Evaluate greedily and sampled, with videos, into <run>/eval/<label>-{greedy,sampled}.json."""
    for mode, temperature in (("greedy", 0.0), ("sampled", config.ppo.temperature)):
        protocol = replace(config.eval, temperature=temperature)
        result, records = evaluate_policy(
            policy, envs, config.env, protocol, f"evaluate {label} {mode}"
        )
        result["checkpoint"] = label
        write_json(run.eval_folder / f"{label}-{mode}.json", result)
        if mode == "greedy" and config.eval.videos > 0:
            folder = run.eval_folder / "videos"
            record_videos(
                records,
                policy,
                config.env,
                config.eval.videos,
                folder / label,
                same_as=folder / "before",
            )


def evaluate_during(
    iteration: int,
    run: Run,
    policy: Policy,
    envs: VectorEnv,
    collector: Collector,
    config: TrainConfig,
) -> None:
    """Every `run.eval_every` iterations: evaluate greedily, then put every running episode back where it was."""
    if config.run.eval_every == 0 or iteration % config.run.eval_every != 0:
        return
    running = collector.state_dict()
    label = f"evaluate iteration {iteration}"
    result, _ = evaluate_policy(policy, envs, config.env, config.eval, label)
    write_json(run.eval_folder / f"iteration-{iteration:06d}.json", result)
    collector.load_state_dict(running)
