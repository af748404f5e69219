"""A policy, made ready for what it is to play."""

from __future__ import annotations

from vla_rl.config import ConfigError, UserError
from vla_rl.envs.defaults import require_same_robot, suite_actions
from vla_rl.envs.suites import is_union
from vla_rl.policies.policy import PlaysSuites, Policy


def ready_for(policy: Policy, suite: str) -> None:
    """Let each suite of a union be played with its own action statistics.

    UserError where the policy is one for another robot or has no statistics for one of the suites, ConfigError where it
    cannot play several robots.
    """
    size = policy.action_dim
    if size == 0:
        raise UserError(
            f"this model of type {policy.kind!r} has not learned to act: fine-tune it on demonstrations first "
            "(vla-rl sft --dataset ... --policy.checkpoint ...)"
        )
    if isinstance(policy, PlaysSuites) and (is_union(suite) or policy.plays_suites):
        wanted = suite_actions(suite)
        size = policy.play_suites(wanted)
        if size != max(one.size for one in wanted.values()):
            raise AssertionError("the statistics have the sizes that were asked for")
    elif len({one.size for one in suite_actions(suite).values()} if is_union(suite) else ()) > 1:
        raise ConfigError(
            f"{suite!r} is of robots whose actions differ in size, and a policy of type {policy.kind!r} knows but one: "
            "play their suites one after the other"
        )
    require_same_robot(size, suite)
