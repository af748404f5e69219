"""GRPO and its kin: the clipped objective on action tokens, with a group's mean in the place of a critic.

    A_i = (R_i - mean R) / std R        over the episodes of one initial state, the same for all turns of episode i

Shao et al. 2024 (arXiv:2402.03300); on vision-language-action models SimpleVLA-RL (arXiv:2509.09674), whose dynamic
sampling and clip-higher are DAPO's (Yu et al. 2025, arXiv:2503.14476). R is the sum of the simulator's rewards and of
the dense ones, where there are any.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32

from vla_rl.algorithms.advantages import Batch
from vla_rl.algorithms.episodes import episodes_of, turns_of
from vla_rl.algorithms.learner_gradients import learner_gradients
from vla_rl.algorithms.minibatches import Order
from vla_rl.algorithms.policy_steps import WithoutCritic
from vla_rl.algorithms.policy_update import PolicyUpdate
from vla_rl.config import GRPOConfig, OptimizerConfig
from vla_rl.distributed.shards import Shards
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.functional import group_advantages
from vla_rl.policies.policy import Policy
from vla_rl.rollout.groups import PlayedGroups


def group_batch(
    played: PlayedGroups, dense_rewards: Float32[np.ndarray, "M N"], config: GRPOConfig
) -> tuple[Batch, dict[str, float]]:
    """The turns to learn from, with their advantages, and numbers about the groups.

    The batch is empty where no group is kept (`grpo.keep`).
    """
    rollout = played.collected.rollout
    every = episodes_of(rollout, played.collected.finished, dense_rewards)
    mixed = np.isin(every.groups, played.mixed)
    kept = every.of(mixed if config.keep == "mixed" else np.ones(len(every), bool))
    advantages = group_advantages(
        torch.from_numpy(kept.sparse + kept.dense), torch.from_numpy(kept.groups), config.advantage
    ).numpy()
    if config.weighting == "episodes" and len(kept):
        advantages = advantages * (kept.turns.mean() / kept.turns)
    numbers = group_metrics(played) | {
        "grpo/groups_kept": len(np.unique(kept.groups)),
        "grpo/turns_kept": kept.turns.sum() / max(1, every.turns.sum()),
    }
    return turns_of(rollout, kept, advantages), {k: float(v) for k, v in numbers.items()}


def group_metrics(played: PlayedGroups) -> dict[str, float]:
    """How many groups were played, and what became of them."""
    finished = played.collected.finished
    won = {e.group for e in finished if e.success}
    lost = {e.group for e in finished if not e.success}
    return {
        "groups/played": float(played.played),
        "groups/mixed": float(len(played.mixed)),
        "groups/all_succeeded": float(len(won - lost)),
        "groups/all_failed": float(len(lost - won)),
    }


class GRPO(WithoutCritic[PolicyUpdate]):
    """The learner of `algorithms.learner.Learner`'s protocol, on batches of `group_batch`."""

    def __init__(
        self,
        policy: Policy,
        config: GRPOConfig,
        optimizer: OptimizerConfig,
        seed: int,
        threads: int = 1,
        world: World = SingleProcess(),
        shards: Shards | None = None,
    ) -> None:
        """`shards`: how a run's environments are divided among its processes; None: there is one shard."""
        gradients, _ = learner_gradients(policy, config.micro_batch, threads, world, shards)
        self.seed = seed
        self.policy = PolicyUpdate(policy, config, optimizer, gradients)

    def update(self, batch: Batch, iteration: int, progress: float) -> dict[str, float]:
        """Improve the policy from one batch, see `Learner.update`; of an empty batch nothing is learned."""
        if not len(batch):
            return {"losses/policy_steps": 0.0}
        batch, numbers = self.policy.check_sampler(batch, Order(self.seed, iteration, "check"))
        order = Order(self.seed, iteration, "policy")
        return numbers | self.policy.improve(batch, order, progress)
