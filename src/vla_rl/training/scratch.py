"""The policy of a run that starts from random weights."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vla_rl.config import TrainConfig
from vla_rl.envs.defaults import suite_actions
from vla_rl.envs.registry import benchmark
from vla_rl.envs.suites import is_union
from vla_rl.policies.action_tokens import identity_statistics
from vla_rl.policies.policy import Policy
from vla_rl.policies.registry import named_family


def scratch_policy(config: TrainConfig) -> Policy:
    """A policy for the suite's instructions and its robot, with the weights that `run.seed` gives."""
    suite = config.env.suite
    played = benchmark(suite)
    return named_family(config.policy.kind).create(
        config.env.image_size,
        played.instructions(suite),
        _statistics(suite),
        played.action_dim,
        config.env.action_chunk,
        config.policy,
        config.run.seed,
    )


def _statistics(suite: str) -> dict[str, Any]:
    """Actions as they are; of several suites an entry for each robot."""
    if is_union(suite):
        robots = {one.robot: one.size for one in suite_actions(suite).values()}
        return {
            name: entry
            for robot, size in robots.items()
            for name, entry in identity_statistics(robot, size).items()
        }
    return identity_statistics(suite.partition(":")[0], benchmark(suite).action_dim)


def keep_reference(policy: Policy, config: TrainConfig, resumed: bool) -> None:
    """Fix the policy that the run starts from, or has started from, as the reference of the KL term."""
    if not resumed:
        policy.keep_reference()
    elif config.policy.checkpoint:
        policy.keep_reference(Path(config.policy.checkpoint))
    else:  # made again from the run's seed
        with TemporaryDirectory() as folder:
            scratch_policy(config).save(Path(folder) / "policy")
            policy.keep_reference(Path(folder) / "policy")
