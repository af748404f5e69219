"""From a rollout window to learning targets: who deserves which part of the reward."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from vla_rl.algorithms.signal import Signal, signal_of
from vla_rl.config import PPOConfig
from vla_rl.functional import bootstrap_inputs, generalized_advantages, masked_whiten
from vla_rl.types import Observation, Rollout


@dataclass(frozen=True)
class Batch:
    """B turns with their learning targets, flattened; turns without an outcome are already left out."""

    observation: Observation  # of this process's turns alone: `own` of the B
    tokens: Int64[Tensor, "B K"]
    log_probs: Float[Tensor, "B K"]  # the sampler's
    advantages: Float[Tensor, " B"]
    values: Float[Tensor, " B"]  # the critic's when the turn was played
    value_targets: Float[Tensor, " B"]
    succeeded: Bool[Tensor, " B"]
    temperature: float
    shards: Int64[np.ndarray, " B"]  # ascending
    first: int = 0  # of this process's turns
    versions: Int64[np.ndarray, " B"] | None = None
    """After how many windows of learning the weights were that played each turn; None: the learner's own played."""
    importance: Float[Tensor, " B"] | None = None
    """Weight of each turn, where older weights have played it; None: all count alike."""
    episodes: Int64[np.ndarray, " B"] | None = None
    """The episode of each turn, as in `Rollout.episode_ids`; None: not recorded."""
    tasks: Int64[np.ndarray, " B"] | None = None
    """The task of each turn, as in `Rollout.task_ids`; None: not recorded."""
    signal: Signal | None = None
    """What the whole window says of each task; None: not counted."""

    def __len__(self) -> int:
        return len(self.tokens)

    def observe(self, rows: Int64[Tensor, " b"]) -> Observation:
        """What was seen in some of this process's turns, by their numbers among the B."""
        return self.observation.select(rows.numpy() - self.first)

    def stale(self, version: int) -> Bool[np.ndarray, " B"]:
        """Which turns were played with older weights than those after `version` windows of learning."""
        if self.versions is None:
            return np.zeros(len(self), bool)
        return self.versions < version

    @property
    def own(self) -> Int64[Tensor, ...]:
        """The rows of this process."""
        return torch.arange(self.first, self.first + len(self.observation))

    def blank(self) -> Batch:
        """One turn that stands for none: for a process that has no turn where the others have some."""
        of_turns = {
            field.name: getattr(self, field.name)[:1]
            for field in fields(self)
            if isinstance(getattr(self, field.name), (Tensor, np.ndarray))
        }
        return replace(self, observation=self.observation.blank(), first=0, **of_turns)


def compute_advantages(
    rollout: Rollout,
    dense_rewards: Float32[np.ndarray, "M N"],
    config: PPOConfig,
    in_return: bool = True,
) -> Batch:
    """Advantages by GAE over turns, and the critic's targets.

    A success ends the return; a time limit bootstraps from the true final observation unless the horizon is part of
    the task. Advantages and value targets have a lambda each: a small one keeps the policy gradient's variance
    low, a large one keeps the critic's targets free of its own errors.

    in_return: Dense rewards are part of the return. Else the critic learns success alone, and the advantages get the
    dense rewards' sum with trace lambda and no baseline.
    The turns come sorted by their shard; those of other processes have all but their images.
    """
    tensor = torch.from_numpy
    values = tensor(rollout.values)
    discounts, next_values, trace = bootstrap_inputs(
        terminated=tensor(rollout.terminated),
        truncated=tensor(rollout.truncated),
        values=values,
        final_values=tensor(rollout.final_values),
        following_values=tensor(rollout.next_values),
        gamma=config.gamma,
        time_limit_is_terminal=config.time_limit_is_terminal,
    )
    valid = tensor(rollout.valid)
    # A crashed simulator cuts the trace: the turn before it bootstraps from the value of what was seen last.
    trace[:-1] = trace[:-1] * valid[1:]
    dense = tensor(dense_rewards)
    rewards = tensor(rollout.rewards) + dense if in_return else tensor(rollout.rewards)
    advantages = generalized_advantages(
        rewards, discounts, values, next_values, trace, config.gae_lambda
    )
    if not in_return:
        nothing = torch.zeros_like(values)
        advantages = advantages + generalized_advantages(
            dense, discounts, nothing, nothing, trace, config.gae_lambda
        )
    targets = values + generalized_advantages(
        rewards, discounts, values, next_values, trace, config.value_lambda
    )
    signal = signal_of(rollout, dense_rewards)
    counted = valid
    if config.wait_for_success:
        counted = valid & tensor(signal.in_sight[rollout.task_ids])
        advantages = torch.where(counted, advantages, torch.zeros_like(advantages))
    if config.normalize_advantages:
        advantages = _whitened(advantages, counted, tensor(rollout.task_ids), config)
    return replace(flattened(rollout, advantages, targets), signal=signal)


def _whitened(
    advantages: Float[Tensor, "M N"],
    counted: Bool[Tensor, "M N"],
    task_ids: Int64[Tensor, "M N"],
    config: PPOConfig,
) -> Float[Tensor, "M N"]:
    """Whitened over the window or within each task; 0 where a turn does not count."""
    if config.normalize_within == "window":
        return masked_whiten(advantages, counted, config.normalize_floor)
    whitened = torch.zeros_like(advantages)
    for task in task_ids.unique():
        of_task = counted & (task_ids == task)
        whitened = whitened + masked_whiten(advantages, of_task, config.normalize_floor)
    return whitened


def flattened(
    rollout: Rollout, advantages: Float[Tensor, "M N"], targets: Float[Tensor, "M N"]
) -> Batch:
    """The turns that count (`Rollout.valid`), shard after shard."""
    num_envs, num_tokens = rollout.valid.shape[1], rollout.tokens.shape[-1]
    shards = np.zeros(num_envs, np.int64) if rollout.shards is None else rollout.shards
    turns, envs = np.nonzero(rollout.valid)
    order = np.argsort(shards[envs], kind="stable")
    turns, envs = turns[order], envs[order]
    kept = torch.from_numpy(turns * num_envs + envs)
    own = np.flatnonzero((envs >= rollout.own.start) & (envs < rollout.own.stop))
    seen = turns[own] * rollout.images.shape[1] + envs[own] - rollout.first
    tensor = torch.from_numpy
    return Batch(
        observation=rollout.flat_observation().select(seen),
        tokens=tensor(rollout.tokens).reshape(-1, num_tokens)[kept],
        log_probs=tensor(rollout.log_probs).reshape(-1, num_tokens)[kept],
        advantages=advantages.reshape(-1)[kept],
        values=tensor(rollout.values).reshape(-1)[kept],
        value_targets=targets.reshape(-1)[kept],
        succeeded=tensor(rollout.succeeded).reshape(-1)[kept],
        temperature=rollout.temperature,
        shards=shards[envs],
        first=int(own[0]) if len(own) else 0,
        versions=None if rollout.versions is None else rollout.versions[turns, envs],
        episodes=rollout.episode_ids[turns, envs],
        tasks=rollout.task_ids[turns, envs],
    )
