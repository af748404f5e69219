"""A policy from wherever it lies, ready to play a suite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vla_rl.config import EnvConfig, PolicyConfig
from vla_rl.envs.defaults import conventions
from vla_rl.policies import registry
from vla_rl.policies.policy import Policy
from vla_rl.rollout.playable import ready_for
from vla_rl.runtime.locate import locate_policy


def load_policy(
    where: str | Path, config: PolicyConfig | None = None, *, suite: str = ""
) -> Policy:
    """The policy in a run folder (its newest), a checkpoint, a policy folder, or the repository of a hub id.

    suite: what it is to play; by default what it was trained on. UserError where there is no policy, where its files
    are damaged, or where it is one for another robot.
    """
    policy, _, _ = load_with_env(where, config or PolicyConfig(), suite)
    return policy


def load_with_env(
    where: str | Path, config: PolicyConfig, suite: str
) -> tuple[Policy, str, EnvConfig | None]:
    """`load_policy`, the suite, and the environment that it was trained in, None where nothing says so."""
    folder, trained_in = locate_policy(Path(where))
    suite = suite or (trained_in or EnvConfig()).suite
    policy = registry.load_policy(
        folder, replace(config, checkpoint=str(folder)), conventions=conventions(suite)
    )
    ready_for(policy, suite)
    return policy, suite, trained_in
