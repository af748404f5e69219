"""How a benchmark is played when nobody says otherwise: its own numbers, and what follows from a run.

Each benchmark states them in its `benchmark.py`. Everything can be set otherwise, and whatever was used is written into
each result.
"""

from __future__ import annotations

from dataclasses import replace

from vla_rl.config import Conventions, EnvConfig, EvalConfig, UserError
from vla_rl.envs.registry import benchmark


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
    played = benchmark(suite)
    env = played.env_defaults(suite)
    if trained_in is not None and benchmark(trained_in.suite) is played:
        env = replace(trained_in, suite=suite)
        steps_a_turn = action_chunk * env.action_repeat
        steps = env.horizon * env.action_chunk * env.action_repeat
        if suite != trained_in.suite:
            steps = played.horizon(suite) or steps
        env = replace(env, horizon=-(-steps // steps_a_turn))
    size = env.image_size if resizes else image_size
    return replace(env, image_size=size, action_chunk=action_chunk)


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


def conventions(suite: str) -> Conventions:
    """What the published checkpoints for `suite` mean by images, gripper and actions, which they do not say."""
    return benchmark(suite).conventions(suite)
