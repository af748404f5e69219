"""The rewards there are: `reward.kind` names one of them."""

from __future__ import annotations

from collections.abc import Callable

from vla_rl.config import ConfigError, TrainConfig, nearest
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.policies.policy import Policy
from vla_rl.rewards.process_reward import process_reward
from vla_rl.rewards.reward import RewardFunction
from vla_rl.rewards.simulator_reward import simulator_reward
from vla_rl.rewards.success_reward import success_reward

RewardBuilder = Callable[[TrainConfig, Policy, World], RewardFunction]

REWARDS: dict[str, RewardBuilder] = {
    "success": success_reward,
    "process": process_reward,
    "simulator": simulator_reward,
}
"""Kind -> its builder. A new reward is a file with a builder, and an entry here."""


def build_reward(
    config: TrainConfig, policy: Policy, world: World = SingleProcess()
) -> RewardFunction:
    """What `config.reward` asks for. ConfigError for an unknown kind, UserError for what does not fit the policy."""
    kind = config.reward.chosen_kind
    if kind not in REWARDS:
        known = nearest(kind, ["auto", *REWARDS])
        raise ConfigError(f"there is no reward.kind {config.reward.kind!r}.{known}")
    return REWARDS[kind](config, policy, world)
