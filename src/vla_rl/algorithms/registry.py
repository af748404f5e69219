"""The algorithms by name. To add one, write a `Learner` and put what builds it into `ALGORITHMS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_rl.algorithms.grpo import GRPO
from vla_rl.algorithms.learner import Learner
from vla_rl.algorithms.ppo import PPO
from vla_rl.algorithms.tpo import TPO
from vla_rl.config import ConfigError, TrainConfig, nearest
from vla_rl.distributed.shards import Shards
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.policies.policy import Policy, has_critic
from vla_rl.runtime.cpus import available_cpus

BuildLearner = Callable[[Policy, TrainConfig, World], Learner[Any]]


def _threads(config: TrainConfig, world: World) -> int:
    return config.run.threads or max(1, available_cpus() // world.local_size)


def _shards(config: TrainConfig, world: World) -> Shards:
    return Shards.of(config.env.num_envs, config.parallel.shards, world)


def _ppo(policy: Policy, config: TrainConfig, world: World) -> PPO:
    if not has_critic(policy):
        raise ConfigError(
            f"PPO needs a policy with a value function, {type(policy).__name__} has none: set policy.critic.kind "
            "separate or shared"
        )
    return PPO(
        policy, config.ppo, config.optimizer, config.policy.critic, config.run.seed,
        _threads(config, world), world, _shards(config, world),
    )  # fmt: skip


def _grpo(policy: Policy, config: TrainConfig, world: World) -> GRPO:
    return GRPO(
        policy, config.grpo, config.optimizer, config.run.seed,
        _threads(config, world), world, _shards(config, world),
    )  # fmt: skip


def _tpo(policy: Policy, config: TrainConfig, world: World) -> TPO:
    return TPO(
        policy, config.tpo, config.optimizer, config.run.seed,
        _threads(config, world), world, _shards(config, world),
    )  # fmt: skip


ALGORITHMS: dict[str, BuildLearner] = {"ppo": _ppo, "grpo": _grpo, "tpo": _tpo}
"""Name (`TrainConfig.algorithm`) -> what builds its learner."""


def require_algorithm(name: str) -> None:
    """Raise ConfigError unless there is an algorithm of this name."""
    if name not in ALGORITHMS:
        raise ConfigError(f"there is no algorithm {name!r}.{nearest(name, ALGORITHMS)}")


def build_learner(
    policy: Policy, config: TrainConfig, world: World = SingleProcess()
) -> Learner[Any]:
    """The learner that the configuration names. Raises ConfigError where there is none of that name."""
    require_algorithm(config.algorithm)
    return ALGORITHMS[config.algorithm](policy, config, world)
