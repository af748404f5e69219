"""Evaluates a policy and says how it did, with intervals, as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from vla_rl.config import EnvConfig, EvalConfig, UserError
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.envs import split_initial_states
from vla_rl.envs.defaults import (
    evaluation_protocol,
)
from vla_rl.envs.env import VectorEnv
from vla_rl.envs.registry import as_played, benchmark, longest_horizon, settings_of, suites_of
from vla_rl.evaluation.episodes import EpisodeRecord, play_each_once
from vla_rl.functional import mean_of_intervals, wilson_interval
from vla_rl.policies.policy import Policy
from vla_rl.policies.shardable import playing
from vla_rl.runtime.progress import progress
from vla_rl.runtime.provenance import versions
from vla_rl.types import EpisodeSpec

FORMAT = 1


Play = Callable[..., list[EpisodeRecord]]
"""Plays episodes as `play_each_once` does."""


def evaluate_policy(
    policy: Policy | None,
    envs: VectorEnv,
    env: EnvConfig,
    config: EvalConfig,
    label: str = "evaluate",
    play: Play = play_each_once,
    world: World = SingleProcess(),
) -> tuple[dict[str, Any], list[EpisodeRecord]]:
    """Play every (task, initial state) of the protocol once; returns the result and its episodes.

    play: how the episodes are played, if not plainly (called like `play_each_once`); policy may be None where it knows
    who plays. world: its processes divide the
    episodes among them, and all get the same result.
    """
    started, errors_before = time.perf_counter(), envs.infrastructure_errors
    every = evaluation_specs(env, config, envs.tasks)
    specs = every[world.rank :: world.size]
    if world.size > 1:  # what the line counts is this process's share
        label += f" (1 of {world.size} processes)"
    with progress(label, total=len(specs)) as bar:
        done: list[bool] = []

        def on_episode(record: EpisodeRecord) -> None:
            done.append(record.success)
            bar.advance(1, success=float(np.mean(done)))

        played = []
        with playing(policy) if policy is not None else nullcontext():
            if specs:
                played = play(
                    policy,
                    envs,
                    specs,
                    temperature=config.temperature,
                    seed=config.seed,
                    on_episode=on_episode,
                )
    parts = world.gather((played, envs.infrastructure_errors - errors_before))
    records = [parts[i % world.size][0][i // world.size] for i in range(len(every))]
    errors = sum(errors for _, errors in parts)
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
        **_by_suite(records, env),
        "overall": summary(records),
        "horizon": longest_horizon(env),
        "action_repeat": as_played(env).action_repeat,
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
        "versions": versions(benchmark(env.suite).packages),
        "wall_seconds": seconds,
    }


def _by_suite(records: Sequence[EpisodeRecord], env: EnvConfig) -> dict[str, Any]:
    """Of a union, each suite's result with the clock it was played by, and the mean of the suites; else nothing."""
    suites = suites_of(env)
    if len(suites) == 1:
        return {}
    rows: dict[str, dict[str, Any]] = {}
    for name, settings in suites.items():
        own = [r for r in records if settings_of(env, r.spec.task) == settings]
        clock = {"horizon": settings.horizon, "action_repeat": settings.action_repeat}
        rows[name] = summary(own) | clock
    rates = [row["success_rate"] for row in rows.values()]
    interval = mean_of_intervals(rates, [row["interval"] for row in rows.values()])
    mean = {"success_rate": float(np.mean(rates)), "interval": list(interval)}
    return {"suites": rows, "mean_of_suites": mean}


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
    invalid = [r.invalid_turns for r in records if r.invalid_turns is not None]
    # of policies alone whose tokens may mean no action
    stood_still = {"invalid_actions": sum(invalid) / max(1, sum(r.turns for r in records))}
    return {
        "successes": successes,
        "episodes": episodes,
        "success_rate": successes / episodes,
        "interval": [low, high],
        "mean_turns": float(np.mean([r.turns for r in records])),
        "mean_simulator_steps": float(np.mean([r.simulator_steps for r in records])),
        **(stood_still if invalid else {}),
    }
