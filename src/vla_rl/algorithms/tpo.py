"""Trajectory-wise preference optimisation: of two episodes from one initial state the better becomes the likelier.

    L = -log sigmoid(beta (l_chosen - l_rejected)) - c mean over the chosen one's turns of log pi
    l = sum over an episode's turns of log pi - log pi_ref

GRAPE (Zhang et al. 2024, arXiv:2411.19309); the second term is RPO's (Pang et al. 2024, arXiv:2404.19733). Without it
the loss may fall while the chosen episode becomes less likely too, as long as the rejected one loses more. Two
episodes with all their images do not fit one pass. But dL/dl is a number that log-probs without gradients give, and l
is a sum over turns. So a first pass finds those numbers, and a second adds up the turns' gradients with them as
weights, in micro-batches and on all processes. The gradient is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from vla_rl.algorithms.advantages import Batch
from vla_rl.algorithms.episodes import episodes_of, turns_of
from vla_rl.algorithms.gradients import Tally
from vla_rl.algorithms.grpo import group_metrics
from vla_rl.algorithms.learner import TrainingDivergedError
from vla_rl.algorithms.learner_gradients import learner_gradients
from vla_rl.algorithms.minibatches import Order
from vla_rl.algorithms.policy_steps import PolicySteps, WithoutCritic
from vla_rl.config import OptimizerConfig, TPOConfig
from vla_rl.distributed.shards import Shards
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.functional import (
    masked_mean,
    preference_loss,
    preference_pairs,
    preference_slopes,
)
from vla_rl.policies.policy import Policy
from vla_rl.rollout.groups import PlayedGroups

_PASS = 256
"""Turns in a forward pass without gradients, where no micro-batch says how many fit."""


@dataclass(frozen=True)
class Preferences:
    """Pairs of episodes and the turns of all that are in one."""

    batch: Batch
    chosen: Int64[np.ndarray, " P"]  # numbers of episodes, as in `Batch.episodes`
    rejected: Int64[np.ndarray, " P"]

    def __len__(self) -> int:
        return len(self.chosen)


def preferences_of(
    played: PlayedGroups, dense_rewards: Float32[np.ndarray, "M N"], config: TPOConfig
) -> tuple[Preferences, dict[str, float]]:
    """Rank the episodes of each group, and pair better with worse; also numbers about that."""
    rollout = played.collected.rollout
    every = episodes_of(rollout, played.collected.finished, dense_rewards)
    scores = (
        config.success_weight * every.success
        + config.reward_weight * every.dense
        + config.likelihood_weight * every.log_likelihood
    )
    pairs = preference_pairs(scores, every.groups, config.pairs)
    involved = np.zeros(len(every), bool)
    involved[pairs.chosen] = involved[pairs.rejected] = True
    of_pairs = every.of(involved)
    batch = turns_of(rollout, of_pairs, np.zeros(len(of_pairs)))
    paired = len(np.unique(every.groups[pairs.chosen]))
    numbers = group_metrics(played) | {
        "tpo/pairs": float(len(pairs.chosen)),
        "tpo/ties": float(pairs.ties),
        "tpo/groups_without_pair": float(played.played - paired),
    }
    return Preferences(batch, every.numbers[pairs.chosen], every.numbers[pairs.rejected]), numbers


Compared = list[tuple[Int64[Tensor, " c"], Int64[Tensor, " r"]]]
"""Rows of a batch, chosen against rejected."""


class TPO(WithoutCritic[PolicySteps]):
    """The learner of `algorithms.learner.Learner`'s protocol, on `Preferences`."""

    def __init__(
        self,
        policy: Policy,
        config: TPOConfig,
        optimizer: OptimizerConfig,
        seed: int,
        threads: int = 1,
        world: World = SingleProcess(),
        shards: Shards | None = None,
    ) -> None:
        """`shards`: how a run's environments are divided among its processes; None: there is one shard."""
        self.gradients, _ = learner_gradients(policy, config.micro_batch, threads, world, shards)
        self.config, self.seed = config, seed
        self.policy = PolicySteps(policy, optimizer, self.gradients, config.micro_batch)

    def update(self, batch: Preferences, iteration: int, progress: float) -> dict[str, float]:
        """Improve the policy from one iteration's pairs, see `Learner.update`; without any nothing is learned."""
        if not len(batch):
            return {"losses/policy_steps": 0.0}
        turns, tally, steps = batch.batch, Tally(), 0
        starting = self.config.reference == "start"
        reference = self._summed(turns, turns.own, reference=starting)
        order = Order(self.seed, iteration, "pairs")
        for epoch in range(self.config.epochs):
            shuffled = order.of(len(batch), epoch, 0)
            for pairs in shuffled.tensor_split(max(1, len(batch) // self.config.minibatch)):
                stats = self.backward(turns, self.compared(batch, pairs), reference)
                stats |= self.policy.step(stats["losses/policy"], progress)
                tally.add(stats)
                steps += 1
        self.policy.require_finite_policy(turns)
        return tally.means() | {"losses/policy_steps": float(steps)}

    def compared(self, batch: Preferences, pairs: Int64[Tensor, " p"]) -> Compared:
        """The rows that some pairs compare: whole episodes, or one `window` after the other."""
        assert batch.batch.episodes is not None
        found: Compared = []
        for pair in pairs.tolist():
            chosen, rejected = (
                torch.from_numpy(np.flatnonzero(batch.batch.episodes == numbers[pair]))
                for numbers in (batch.chosen, batch.rejected)
            )
            size = self.config.window
            if not size:
                found.append((chosen, rejected))
                continue
            shorter = min(len(chosen), len(rejected))
            found += zip(chosen[:shorter].split(size), rejected[:shorter].split(size), strict=True)
        return found

    def backward(
        self, batch: Batch, compared: Compared, reference: Float[Tensor, " own"]
    ) -> dict[str, float]:
        """Gradients of the mean loss of what is compared; returns statistics, with the loss as `losses/policy`.

        reference: log-probs of this process's turns under the reference policy, summed over tokens.
        """
        rows = torch.cat([row for both in compared for row in both]).unique()
        likelihood, ratios = self._log_likelihoods(batch, rows, reference)
        chosen, rejected = (
            torch.stack([ratios[both[side]].sum() for both in compared]) for side in (0, 1)
        )
        own_likelihood = torch.stack([likelihood[better].mean() for better, _ in compared]).mean()
        imitation = self.config.self_imitation_coef
        loss = preference_loss(chosen, rejected, self.config.beta) - imitation * own_likelihood
        if not torch.isfinite(loss):  # the same on all ranks
            raise TrainingDivergedError(
                f"the preference loss is {loss.item():g}: lower the learning rate or tpo.beta"
            )
        slopes = preference_slopes(chosen - rejected, self.config.beta) / len(compared)
        weights = torch.zeros(len(batch))
        for slope, (better, worse) in zip(slopes, compared, strict=True):
            weights[better] += slope - imitation / (len(compared) * len(better))
            weights[worse] -= slope
        weights *= len(rows)  # what is differentiated is a mean over the rows
        parts = [rows[torch.from_numpy(batch.shards[rows] == shard)] for shard in self._own(batch)]
        stats = self.gradients.backward(
            lambda part: self._weighted(batch, part, weights),
            parts,
            self.policy.policy.policy_parameters(),
        )
        return stats | {
            "losses/policy": loss.item(),
            "tpo/accuracy": float((chosen > rejected).float().mean()),
            "tpo/margin": float((chosen - rejected).mean()),
            "tpo/chosen_log_ratio": float(chosen.mean()),
            "tpo/rejected_log_ratio": float(rejected.mean()),
            "tpo/chosen_log_likelihood": float(own_likelihood),
        }

    def _own(self, batch: Batch) -> range:
        own = self.gradients.own_shards
        return range(int(batch.shards.max()) + 1) if own is None else own

    def _weighted(
        self, batch: Batch, rows: Int64[Tensor, " b"], weights: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Mean of the turns' log-probs with their weights."""
        if not len(rows):  # a pass that is made for the others' sake
            batch, rows = batch.blank(), torch.zeros(1, dtype=torch.int64)
        device = self.policy.device
        now = self.policy.policy.evaluate(
            batch.observe(rows), batch.tokens[rows].to(device), batch.temperature
        )
        likelihood = now.log_probs.float().sum(-1)
        loss = (weights[rows].to(device) * likelihood).mean()
        return loss, {"losses/entropy": masked_mean(now.entropy.detach(), now.mask).item()}

    def _log_likelihoods(
        self, batch: Batch, rows: Int64[Tensor, " b"], reference: Float[Tensor, " own"]
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Log-probs of some turns, those of all processes, and less the reference's; 0 for the others."""
        last = batch.first + len(batch.observation)
        own = rows[(rows >= batch.first) & (rows < last)]
        likelihood = self._summed(batch, own)
        both = torch.stack([likelihood, likelihood - reference[own - batch.first]])
        whole = torch.zeros(2, len(batch))
        for at, found in self.gradients.world.gather((own, both)):
            whole[:, at] = found
        return whole[0], whole[1]

    def _summed(
        self, batch: Batch, rows: Int64[Tensor, " b"], *, reference: bool = False
    ) -> Float[Tensor, " b"]:
        """Log-probs of some turns of this process, summed over their tokens."""
        size = self.config.micro_batch or _PASS
        return self.policy.log_probs(batch, rows, size, reference=reference).float().sum(-1)
