"""Trajectory-wise preference optimisation on logged episodes: `tpo`'s loss, on pairs that stay what they are.

The reference is the policy as it starts: its log-probs are computed once, before the first step.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from vla_rl.algorithms.advantages import Batch
from vla_rl.algorithms.tpo import TPO, Preferences
from vla_rl.config import OptimizerConfig, TPOConfig
from vla_rl.config.preference import PreferConfig
from vla_rl.functional import preference_pairs
from vla_rl.policies.policy import Policy
from vla_rl.types import Observation

FINAL_LEARNING_RATE = 0.1
PASS = 64
"""Turns in a forward pass without gradients, where no micro-batch says how many fit."""


def logged_preferences(
    observation: Observation,
    tokens: Int64[Tensor, "F K"],
    episode_ids: Int64[np.ndarray, " F"],
    chosen: Int64[np.ndarray, " P"],
    rejected: Int64[np.ndarray, " P"],
) -> Preferences:
    """Pairs of episodes, by their numbers in `episode_ids`, as `TPO` learns from them."""
    nothing = torch.zeros(len(tokens))
    batch = Batch(
        observation=observation,
        tokens=tokens,
        log_probs=torch.zeros(tokens.shape),
        advantages=nothing,
        values=nothing,
        value_targets=nothing,
        succeeded=torch.zeros(len(tokens), dtype=torch.bool),
        temperature=1.0,
        shards=np.zeros(len(tokens), np.int64),
        episodes=episode_ids,
    )
    return Preferences(batch, chosen, rejected)


def pairs_among(
    scores: Float64[np.ndarray, " E"],
    groups: Int64[np.ndarray, " E"],
    numbers: Int64[np.ndarray, " E"],
    kept: Bool[np.ndarray, " E"],
    most: int,
) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
    """Chosen and rejected episodes among those that are `kept`, by their `numbers`."""
    found = preference_pairs(scores[kept], groups[kept], most)
    return numbers[kept][found.chosen], numbers[kept][found.rejected]


class LoggedTPO:
    """The learner: what `training.epoch_state` needs, on pairs by their places in `preferences`."""

    def __init__(
        self, policy: Policy, preferences: Preferences, config: PreferConfig, total_steps: int
    ) -> None:
        """The policy must be as it starts: it is its own reference."""
        self.preferences, self.total_steps, self.policy = preferences, total_steps, policy
        settings = TPOConfig(
            beta=config.beta,
            self_imitation_coef=config.self_imitation_coef,
            window=config.window,
            micro_batch=config.micro_batch,
        )
        rates = OptimizerConfig(
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_steps,
            final_learning_rate=FINAL_LEARNING_RATE,
            max_grad_norm=config.max_grad_norm,
        )
        self._tpo = TPO(policy, settings, rates, config.seed)
        self._size = config.micro_batch or PASS
        self._reference = self._summed(preferences.batch.own)
        self.steps = 0

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return self.policy.policy_parameters()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._tpo.policy.optimizer

    def update(self, pairs: Int64[np.ndarray, " p"]) -> dict[str, float]:
        """One optimizer step on some pairs; TrainingDivergedError where it leads to what is not finite."""
        compared = self._tpo.compared(self.preferences, torch.from_numpy(pairs))
        stats = self._tpo.backward(self.preferences.batch, compared, self._reference)
        self._tpo.policy.steps = self.steps  # of a run that goes on
        stats |= self._tpo.policy.step(stats["losses/policy"], self.steps / self.total_steps)
        self.steps += 1
        if self.steps >= self.total_steps:
            self._tpo.policy.require_finite_policy(self.preferences.batch)
        return {name.split("/")[1]: value for name, value in stats.items()}

    def told_apart(self, pairs: Int64[np.ndarray, " p"]) -> dict[str, float]:
        """Of pairs that need not have been learned from: how many the policy ranks as they are ranked, and by how much.

        A pair is ranked by how much likelier its episodes have become; 0 at the start.
        """
        margins = []
        for better, worse in self._tpo.compared(self.preferences, torch.from_numpy(pairs)):
            now = [
                (self._summed(rows) - self._reference[rows]).sum().item()
                for rows in (better, worse)
            ]
            margins.append(now[0] - now[1])
        return {
            "accuracy": float(np.mean([margin > 0 for margin in margins])),
            "margin": float(np.mean(margins)),
        }

    def _summed(self, rows: Int64[Tensor, " b"]) -> Tensor:
        found = self._tpo.policy.log_probs(self.preferences.batch, rows, self._size)
        return found.float().sum(-1)
