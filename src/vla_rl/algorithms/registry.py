"""The algorithms by name. To add one, write a `Learner` and put what builds it into `ALGORITHMS`."""

from __future__ import annotations

from collections.abc import Callable

from vla_rl.algorithms.learner import Learner
from vla_rl.algorithms.ppo import PPO
from vla_rl.config import ConfigError, TrainConfig, nearest
from vla_rl.distributed.shards import Shards
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.policies.policy import Policy, has_critic
from vla_rl.runtime.cpus import available_cpus

BuildLearner = Callable[[Policy, TrainConfig, World], Learner]


def _ppo(policy: Policy, config: TrainConfig, world: World) -> Learner:
    if not has_critic(policy):
        raise ConfigError(
            f"PPO needs a policy with a value function, {type(policy).__name__} has none"
        )
    run, parallel = config.run, config.parallel
    threads = run.threads or max(1, available_cpus() // world.local_size)
    shards = Shards.of(config.env.num_envs, parallel.shards, world)
    return PPO(
        policy, config.ppo, config.optimizer, config.policy.critic, run.seed, threads, world, shards
    )


ALGORITHMS: dict[str, BuildLearner] = {"ppo": _ppo}
"""Name (`TrainConfig.algorithm`) -> what builds its learner."""


def require_algorithm(name: str) -> None:
    """Raise ConfigError unless there is an algorithm of this name."""
    if name not in ALGORITHMS:
        raise ConfigError(f"there is no algorithm {name!r}.{nearest(name, ALGORITHMS)}")


def build_learner(policy: Policy, config: TrainConfig, world: World = SingleProcess()) -> Learner:
    """The learner that the configuration names. Raises ConfigError where there is none of that name."""
    require_algorithm(config.algorithm)
    return ALGORITHMS[config.algorithm](policy, config, world)
