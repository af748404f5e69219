"""The policy's optimizer and what every algorithm does with it: clip the gradient, step at the rate of the moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vla_rl.algorithms.advantages import Batch
from vla_rl.algorithms.gradients import Gradients
from vla_rl.algorithms.learner import (
    TrainingDivergedError,
    finite,
    require_finite_step,
    require_finite_weights,
)
from vla_rl.config import OptimizerConfig
from vla_rl.policies.policy import Policy

LAST_LOOK = 32
"""Turns on which the policy is looked at after an update, unless a micro-batch says how many fit."""


class PolicySteps:
    """AdamW on the policy's parameters with its schedule, and the policy's log-probs of what was played."""

    def __init__(
        self, policy: Policy, optimizer: OptimizerConfig, gradients: Gradients, micro_batch: int
    ) -> None:
        """micro_batch: turns in a forward pass; 0: no limit is known."""
        self.policy, self.rates, self.gradients = policy, optimizer, gradients
        self.micro_batch = micro_batch
        self.device = policy.policy_parameters()[0].device
        self.optimizer = torch.optim.AdamW(
            policy.policy_parameters(),
            lr=optimizer.learning_rate,
            betas=(0.9, optimizer.adam_beta2),
            eps=optimizer.adam_eps,
            weight_decay=optimizer.weight_decay,
        )
        self.steps = 0

    def learning_rate(self, progress: float) -> float:
        """Warm-up times decay, see `OptimizerConfig`."""
        rates = self.rates
        warm = min(1.0, (self.steps + 1) / max(1, rates.warmup_steps))
        decayed = 1 - (1 - rates.final_learning_rate) * min(1.0, progress)
        return rates.learning_rate * warm * decayed

    def step(self, loss: float, progress: float, scale: float = 1.0) -> dict[str, float]:
        """Clip and step, at `scale` times the learning rate of this point of the run."""
        rate = scale * self.learning_rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parameters = self.policy.policy_parameters()
        norm = self.gradients.clip(parameters, self.rates.max_grad_norm)
        require_finite_step(loss, norm, "policy")
        stats = {"losses/grad_norm_policy": norm.item(), "losses/learning_rate": rate}
        stats |= self.step_beside(loss)
        self.optimizer.step()
        require_finite_weights(self.gradients.finite(parameters), "policy", rate)
        self.steps += 1
        return stats

    def step_beside(self, loss: float) -> dict[str, float]:
        """The step of whatever learns in the same pass, before the policy's own; returns numbers about it."""
        return {}

    def log_probs(
        self, batch: Batch, rows: Int64[Tensor, " b"], size: int, *, reference: bool = False
    ) -> Float[Tensor, "b K"]:
        """The learner's log-probs of what was played, or the reference policy's, in passes of `size`, no gradients."""
        parts = [batch.log_probs[:0]]
        for part in self.gradients.passes(rows, size):
            of, at = (batch, part) if len(part) else (batch.blank(), torch.zeros(1).long())
            observation, tokens = of.observe(at), of.tokens[at].to(self.device)
            with torch.no_grad():
                found = (
                    self.policy.reference_log_probs(observation, tokens, of.temperature)
                    if reference
                    else self.policy.evaluate(observation, tokens, of.temperature).log_probs
                )
            parts.append(found.cpu()[: len(part)])
        return torch.cat(parts)

    def require_finite_policy(self, batch: Batch) -> None:
        """Finite weights can be so large that nothing else is; without a further step nobody would notice."""
        rows = batch.own[: self.micro_batch or LAST_LOOK]
        broken = not finite([self.log_probs(batch, rows, len(rows))])
        if self.gradients.world.any(broken):
            raise TrainingDivergedError(
                f"the policy's log-probs are not finite after the update (learning rate {self.rates.learning_rate:g}): "
                "lower the learning rate"
            )


Steps = TypeVar("Steps", bound=PolicySteps)


class WithoutCritic(Generic[Steps]):
    """What a learner saves that has the policy alone; `algorithms.learner.Learner`'s part that GRPO and TPO share."""

    policy: Steps

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The policy's, by its name in a checkpoint."""
        return {"policy_optimizer": self.policy.optimizer}

    def state_dict(self) -> dict[str, Any]:
        """The counter of steps; the optimizer is saved beside it."""
        return {"policy_steps": self.policy.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.policy.steps = int(state["policy_steps"])
