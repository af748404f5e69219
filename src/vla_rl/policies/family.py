"""What a class of policies brings along, so that every recipe can be used with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from vla_rl.config.policy import Conventions, PolicyConfig
from vla_rl.policies.memory import MemoryBudget
from vla_rl.policies.policy import Policy

ImageFit = Literal["stretch", "pad", "crop"]


@runtime_checkable
class LoadPolicy(Protocol):
    """Load a checkpoint. Raises UserError for what is missing, damaged or does not fit together."""

    def __call__(
        self,
        folder: Path | str,
        config: PolicyConfig | None = None,
        *,
        unnorm_key: str | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        conventions: Conventions | None = None,
    ) -> Policy: ...


@runtime_checkable
class CreatePolicy(Protocol):
    """Make a small policy with random weights for a dataset: the same seed, the same policy.

    norm_stats: action statistics of that one dataset, as in dataset_statistics.json. image_fit: see
    `Policy.with_actions_of`.
    """

    def __call__(
        self,
        image_size: int,
        instructions: Sequence[str],
        norm_stats: Mapping[str, Any],
        action_dim: int,
        action_chunk: int,
        config: PolicyConfig,
        seed: int,
        image_fit: ImageFit | None = None,
    ) -> Policy: ...


@runtime_checkable
class BudgetOf(Protocol):
    """The memory that training a loaded policy takes, with `rollout_batch` observations decoded at once."""

    def __call__(self, policy: Any, rollout_batch: int) -> MemoryBudget: ...


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at in a checkpoint."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""
    """What to do about it; empty where there is nothing to do."""


@runtime_checkable
class Examine(Protocol):
    """Look at a checkpoint: the same faults as loading finds, all of them, and what it needs of this machine."""

    def __call__(self, reference: str) -> list[Finding]: ...


@dataclass(frozen=True)
class PolicyFamily:
    """A class of policies: an entry of `registry.POLICIES`."""

    load: LoadPolicy
    create: CreatePolicy
    memory_budget: BudgetOf
    examine: Examine
    shardable: bool = False
    """Its policies' weights can be divided among ranks, see `shardable.Shardable`."""
    fast: bool = False
    """Its policies can write actions as FAST tokens: `create` and `with_actions_of` take a `FastTokens` as `fast`."""
