"""How much memory an OpenVLA-OFT policy takes to play and to train: OpenVLA's, without caches."""

from __future__ import annotations

from dataclasses import replace

import torch

from vla_rl.policies.memory import MemoryBudget
from vla_rl.policies.openvla import memory
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy


def policy_budget(policy: OpenVLAOFTPolicy, rollout_batch: int) -> MemoryBudget:
    """`openvla.memory.policy_budget`, with two more columns and with a last layer of K columns.

    `rollout_batch` keeps nothing between calls: there is no key-value cache.
    """
    budget = memory.policy_budget(policy, 0)
    language = policy.description.model.language
    whole = 8 * language.hidden + 4 * language.mlp_width  # what a layer keeps for one column
    if policy.config.activation_checkpointing:
        more = 2 * (language.layers * language.hidden + whole)
    else:
        more = 2 * language.layers * whole + policy.num_tokens * (whole - 4 * language.hidden)
    sharding = policy.sharding
    compute = policy.model.dtype if sharding is None else sharding.compute
    itemsize = compute.itemsize if policy.description.lora is not None else torch.float32.itemsize
    return replace(budget, per_sample=budget.per_sample + more * itemsize)
