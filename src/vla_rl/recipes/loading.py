"""A policy from wherever it lies, ready to play a suite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vla_rl.config import EnvConfig, PolicyConfig, UserError
from vla_rl.envs.defaults import conventions
from vla_rl.policies import registry
from vla_rl.policies.policy import PlaysSuites, Policy
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


def load_without_suite(where: str | Path, config: PolicyConfig) -> Policy:
    """`load_policy` for a robot that no suite has, or to be asked about a log: nothing is said of where it plays.

    UserError for a model that has not learned to act, and for a policy of several suites that does not say of which.
    """
    folder, trained_in = locate_policy(Path(where))
    known = None if trained_in is None else conventions(trained_in.suite)
    policy = registry.load_policy(
        folder, replace(config, checkpoint=str(folder)), conventions=known
    )
    if trained_in is not None:
        ready_for(policy, trained_in.suite)
    elif policy.action_dim == 0 or (isinstance(policy, PlaysSuites) and policy.plays_suites):
        raise UserError(
            f"{where}: expected a policy of one robot that has learned to act, got one that has not, or one of several "
            "suites that does not say which: fine-tune it first (vla-rl sft)"
        )
    return policy
