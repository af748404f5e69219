"""Policies whose weights can be divided among ranks, see `distributed.sharding`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, runtime_checkable

import torch

from vla_rl.distributed.sharding import Sharding
from vla_rl.policies.policy import Policy


@runtime_checkable
class Shardable(Protocol):
    """What a policy has on top whose weights can be divided among ranks."""

    sharding: Sharding | None
    """None while it is whole."""

    def shard(self, sharding: Sharding) -> None:
        """Keep this rank's part of the weights alone, on the sharding's device.

        A reference is to be kept before, and an optimizer is to be made after it: the parameters are others then.
        """
        ...


def sharding_of(policy: Policy) -> Sharding | None:
    """How the policy's weights are divided; None where they are whole."""
    return policy.sharding if isinstance(policy, Shardable) else None


def playing(policy: Policy) -> AbstractContextManager[None]:
    """Inside, each rank lets the policy play as often as it needs to. All ranks enter, and leave together."""
    sharding = sharding_of(policy)
    return nullcontext() if sharding is None else sharding.playing()


def lending(
    policy: Policy, optimizers: Iterable[torch.optim.Optimizer]
) -> AbstractContextManager[None]:
    """Inside, rank 0 saves the policy and the optimizers whole. All ranks enter, see `Sharding.lending`."""
    sharding = sharding_of(policy)
    return nullcontext() if sharding is None else sharding.lending(optimizers)
