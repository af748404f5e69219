"""How a benchmark is played when nobody says otherwise: its own numbers, and what follows from a run.

Each benchmark states them in its `benchmark.py`. Everything can be set otherwise, and whatever was used is written into
each result.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from vla_rl.config import ConfigError, Conventions, EnvConfig, EvalConfig, UserError
from vla_rl.config.policy import SuiteActions
from vla_rl.envs.benchmark import Benchmark
from vla_rl.envs.registry import BENCHMARKS, as_played, benchmark
from vla_rl.envs.suites import is_union, shown, suite_parts


def benchmark_env(suite: str) -> EnvConfig:
    """The environment of a suite's protocol."""
    return benchmark(suite).env_defaults(suite)


def laptop_env(suite: str) -> EnvConfig:
    """The environment in which a small policy practises `suite` on a laptop."""
    return benchmark(suite).laptop_defaults(suite)


def evaluation_env(
    suite: str, trained_in: EnvConfig | None, image_size: int, resizes: bool, action_chunk: int
) -> EnvConfig:
    """Where a policy is evaluated: as it was trained if on the same benchmark, else by the protocol.

    `image_size` is the model's; frames come in it unless the policy `resizes` them itself. On another suite than the
    one trained on, the horizon is that suite's, in turns, if the benchmark has one for each; so many simulator steps
    stay when the chunk changes. UserError where neither `suite` nor `trained_in` says what to play.
    """
    if not suite:
        if trained_in is None:
            raise UserError(
                "nothing beside this policy says what it was trained on (its run's config.json, or environment.json): "
                "expected a suite to play, give one with --suite, for example --suite mt5"
            )
        suite = trained_in.suite
    env = benchmark(suite).env_defaults(suite)
    if trained_in is not None and _kinds(suite) <= _kinds(trained_in.suite):
        env = _as_trained(suite, trained_in, action_chunk)
    size = env.image_size if resizes else image_size
    return replace(env, image_size=size, action_chunk=action_chunk)


def _kinds(suite: str) -> frozenset[str]:
    """Titles of the benchmarks that a suite's parts belong to."""
    return frozenset(benchmark(part).title for part in suite_parts(suite))


def _as_trained(suite: str, trained_in: EnvConfig, action_chunk: int) -> EnvConfig:
    """As many simulator steps as in training, and on another suite as many as that suite's own."""
    env, other = replace(trained_in, suite=suite), suite != trained_in.suite
    if is_union(suite):
        turns = -(-env.horizon * env.action_chunk // action_chunk)
        return replace(env, horizon=0 if other else turns)
    env, played = as_played(env), benchmark(suite)
    steps = env.horizon * env.action_chunk * env.action_repeat
    if other:
        steps = played.horizon(suite) or steps
    return replace(env, horizon=-(-steps // (action_chunk * env.action_repeat)))


def evaluation_protocol(config: EvalConfig, env: EnvConfig) -> EvalConfig:
    """`config` with what it leaves open filled in: the split, and how many of its initial states."""
    defaults = benchmark(env.suite).eval_defaults
    split = defaults.split if config.split == "auto" else config.split
    episodes = config.episodes_per_task
    if episodes is None:
        held_out, total = env.held_out, env.initial_states
        episodes = {"held-out": held_out, "train": total - held_out, "all": total}[split]
        if defaults.episodes_per_task is not None:
            episodes = min(episodes, defaults.episodes_per_task)
    return replace(config, split=split, episodes_per_task=episodes)


def require_same_robot(action_dim: int, suite: str) -> None:
    """UserError unless a policy that decides `action_dim` numbers an action can play `suite`."""
    played = benchmark(suite)
    if action_dim != played.action_dim:
        raise UserError(
            f"the policy decides {action_dim} numbers an action, but {suite} ({played.title}) is played with "
            f"{played.action_dim}: choose a suite of the robot it was trained on, or another policy"
        )


def suite_actions(suite: str) -> dict[str, SuiteActions]:
    """For each instruction of a suite, or of a union's suites: which statistics its actions have, and how many numbers.

    ConfigError where two suites say the same and their actions have different ones, as a policy could not tell them
    apart.
    """
    found: dict[str, SuiteActions] = {}
    every = _suite_datasets()
    for part in suite_parts(suite):
        played = benchmark(part)
        own = SuiteActions(_dataset(played, part), played.robot, played.action_dim, every)
        for text in played.instructions(part):
            if found.setdefault(text, own) != own:
                raise ConfigError(
                    f"{shown(suite)} says {text!r} in two suites whose actions have different statistics, "
                    f"{found[text].dataset!r} and {own.dataset!r}, and a policy could not tell them apart: leave the "
                    "task out of one"
                )
    return found


def _dataset(played: Benchmark, suite: str) -> str:
    """Of a suite whose published checkpoints have statistics of their own; else of its robot."""
    return played.conventions(suite).unnorm_key or played.robot


@cache
def _suite_datasets() -> frozenset[str]:
    suites = {_dataset(played, suite) for played in BENCHMARKS.values() for suite in played.suites}
    return frozenset(suites | {played.robot for played in BENCHMARKS.values()})


def conventions(suite: str) -> Conventions:
    """What the published checkpoints for `suite` mean by images, gripper and actions, which they do not say."""
    return benchmark(suite).conventions(suite)
