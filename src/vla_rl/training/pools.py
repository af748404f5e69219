"""Who simulates and who plays for a training run: its own processes, or pools of them."""

from __future__ import annotations

from functools import partial

from vla_rl.config import TrainConfig
from vla_rl.distributed.shards import Shards
from vla_rl.distributed.world import World
from vla_rl.envs import ProcessVectorEnv, SerialVectorEnv, make_vector_env
from vla_rl.policies.policy import Policy
from vla_rl.rollout.engine import Engine, build_engine
from vla_rl.runtime.run_folder import Run
from vla_rl.training.state import FollowedRun, load_or_make, newest, own_envs


def envs_of_run(
    config: TrainConfig, shards: Shards, world: World
) -> ProcessVectorEnv | SerialVectorEnv:
    """The environments of this process, in its own simulators or in its part of `parallel.hosts`."""
    parallel = config.parallel
    own = own_envs(config, shards, world)
    if parallel.arrangement != "pools" or parallel.hosts == 0:
        return make_vector_env(own, world.local_rank, world.local_size)
    from vla_rl.distributed.ray_cluster import share_of
    from vla_rl.envs.vector.hosted import HostedVectorEnv

    share = share_of(parallel)
    first, last = (parallel.hosts * rank // shards.size for rank in (shards.rank, shards.rank + 1))
    asked = -(-config.env.num_workers // parallel.hosts)  # of all hosts together
    return HostedVectorEnv(
        own, last - first, parallel.timeout, share.cpus, asked or share.simulator_workers
    )


def engine_of_run(
    config: TrainConfig, policy: Policy, run: Run | FollowedRun, world: World
) -> Engine:
    """Who plays: an engine of this process, or `parallel.actors`."""
    parallel = config.parallel
    if parallel.arrangement != "pools" or parallel.actors == 0:
        return build_engine(policy, config, world)
    from vla_rl.rollout.actor_engine import ActorEngine

    return ActorEngine(policy, config, world, partial(load_or_make, config, newest(run, world)))
