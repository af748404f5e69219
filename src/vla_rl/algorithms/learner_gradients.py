"""Who computes a learner's gradients: threads of this process, or all ranks where weights are divided among them."""

from __future__ import annotations

from vla_rl.algorithms.gradients import Gradients, ThreadedGradients
from vla_rl.algorithms.sharded_gradients import ShardedGradients
from vla_rl.distributed.shards import Shards
from vla_rl.distributed.world import World
from vla_rl.policies.policy import Policy
from vla_rl.policies.shardable import sharding_of


def learner_gradients(
    policy: Policy, micro_batch: int, threads: int, world: World, shards: Shards | None
) -> tuple[Gradients, ThreadedGradients]:
    """For the policy's own parameters, and for what every process holds whole; one and the same unless it is sharded.

    shards: how a run's environments are divided among its processes; None: there is one shard.
    """
    device = policy.policy_parameters()[0].device
    threaded = ThreadedGradients(threads, micro_batch, device, world, shards)
    sharding = sharding_of(policy)
    if sharding is None:
        return threaded, threaded
    return ShardedGradients(sharding, micro_batch, shards), threaded
