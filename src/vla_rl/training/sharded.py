"""A policy whose weights are divided among the ranks (`parallel.shard fsdp2`): how it comes, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vla_rl.config import ConfigError, TrainConfig
from vla_rl.distributed.sharding import Sharding
from vla_rl.distributed.world import World
from vla_rl.policies.policy import Policy
from vla_rl.policies.registry import family_of
from vla_rl.policies.shardable import Shardable
from vla_rl.runtime.devices import resolve_device
from vla_rl.runtime.trees import Array


def sharded_policy(
    config: TrainConfig, world: World, make: Callable[[TrainConfig], Policy]
) -> Policy:
    """What `make` makes on the host, one rank after the other, of which each rank keeps its part on its device.

    So a machine holds one whole model at a time, on the host, and a GPU one layer. Raises ConfigError for a policy
    whose weights cannot be divided, and UserError where the ranks have made different ones.
    """
    settings = config.policy
    if settings.checkpoint:
        family = family_of(settings.checkpoint, settings.base, settings.kind)
        if not family.shardable:
            raise ConfigError(_cannot(settings.checkpoint))
    device = resolve_device(settings.device)
    compute = compute_dtype(config, device)
    sharding = Sharding(world, device, config.parallel.gather, compute)
    # weights that are trained are float32 whatever computes; the policy knows whether adapters are
    stored = "bfloat16" if compute == torch.bfloat16 and settings.lora else "float32"
    of_host = replace(config, policy=replace(settings, device="cpu", dtype=stored))
    policy: Policy | None = None
    for rank in range(world.size):
        if rank == world.rank:
            policy = make(of_host)
            if not isinstance(policy, Shardable):
                raise ConfigError(_cannot(type(policy).__name__))
            policy.shard(sharding)
        world.barrier()
    assert policy is not None
    sharding.require_same()
    return policy


def _cannot(what: str) -> str:
    return (
        f"parallel.shard fsdp2 divides a policy's weights among ranks, and {what} is of a type that does not know how: "
        "set parallel.shard none"
    )


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The precision in which sharded weights compute, see `ParallelConfig.shard`."""
    half = config.policy.dtype == "bfloat16" or (
        config.policy.dtype == "auto" and device.type == "cuda"
    )
    return torch.bfloat16 if half else torch.float32


def whole(tensors: Mapping[str, Array], sharding: Sharding) -> dict[str, Array]:
    """The tensors in one piece on the host; on rank 0, inside `lending`."""
    return {
        name: sharding.whole(value) if isinstance(value, Tensor) else value
        for name, value in tensors.items()
    }
