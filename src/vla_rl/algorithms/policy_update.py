"""Several epochs of the clipped objective on action tokens: the half of PPO and its kin that moves the policy.

    L = - w sum_k min(r_k A, clip(r_k, 1 - low, 1 + high) A)           the clipped surrogate
        - c_ent H(pi) + c_kl KL(pi || pi_ref) - c_sil 1[success] log pi(a)

with successes that are kept over many windows (`kept_successes`) in the place of the last term, if there are any.

Schulman et al. 2017 (arXiv:1707.06347) with the log-prob of an action as the sum over its K tokens (VLA-RL,
arXiv:2505.18719, section 3.2). Where the advantages A come from is not its business. w is 1 but for turns that older
weights have played (decoupled objective, Hilton et al. 2021, arXiv:2110.00641).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vla_rl.algorithms.advantages import Batch
from vla_rl.algorithms.gradients import Gradients, Tally
from vla_rl.algorithms.kept_successes import KeptSuccesses, KeptTurns
from vla_rl.algorithms.learner import TrainingDivergedError
from vla_rl.algorithms.minibatches import Order, Parts, minibatches
from vla_rl.algorithms.policy_steps import PolicySteps
from vla_rl.config import GRPOConfig, OptimizerConfig, PPOConfig
from vla_rl.functional import (
    clipped_surrogate,
    importance_weights,
    kl_estimate,
    masked_mean,
    surrogate_statistics,
    turn_mean,
)
from vla_rl.policies.policy import Evaluation, Policy


class JointCritic(Protocol):
    """A critic in the policy's own network, which learns in the same pass and steps with it."""

    def parameters(self) -> list[nn.Parameter]: ...

    def joint_loss(
        self, batch: Batch, rows: Int64[Tensor, " b"], values: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """What is added to the policy's loss, and numbers about it."""
        ...

    def clip(self, loss: float) -> dict[str, float]:
        """Clip the gradient; raises TrainingDivergedError, before any step, where it is not finite."""
        ...

    def step(self) -> None:
        """Take the step that `clip` allowed."""
        ...


Settings = PPOConfig | GRPOConfig
"""What an algorithm's configuration says about its clipped objective."""


class PolicyUpdate(PolicySteps):
    """The policy's optimizer, and the clipped objective that it descends."""

    def __init__(
        self,
        policy: Policy,
        settings: Settings,
        optimizer: OptimizerConfig,
        gradients: Gradients,
        joint_critic: JointCritic | None = None,
        importance_cap: float = 0.0,
    ) -> None:
        """`importance_cap`: of the weights of turns that older weights have played; 0: none."""
        super().__init__(policy, optimizer, gradients, settings.micro_batch)
        self.settings, self.joint_critic = settings, joint_critic
        self.importance_cap = importance_cap
        self.kept: KeptSuccesses | None = None
        """Successes to imitate in the place of a window's own."""

    def check_sampler(self, batch: Batch, order: Order) -> tuple[Batch, dict[str, float]]:
        """Compare the sampler's log-probs with the learner's, before anything has moved.

        On a minibatch, or on all turns where the learner's own are to be the old ones. Turns that older weights have
        played say nothing about that: they get the learner's log-probs as the old ones, and a weight. Returns the batch
        to learn from and numbers about it.
        """
        settings, world = self.settings, self.gradients.world
        stale = torch.from_numpy(batch.stale(order.iteration))
        recomputes = settings.recompute_log_probs or bool(stale.any())
        rows = batch.own
        if not recomputes:
            own = self.gradients.own_shards
            rows = torch.cat(next(minibatches(batch.shards, own, 1, settings.minibatch, order)))
        now = self.log_probs(batch, rows, settings.micro_batch or settings.minibatch)
        fresh = ~stale[rows]
        differences = (now - batch.log_probs[rows])[fresh].abs()
        all_differences = world.gather(float(differences.max()) if len(differences) else 0.0)
        for difference in all_differences:
            if not difference <= settings.logprob_tolerance:
                raise TrainingDivergedError(
                    f"the learner's log-probs differ from the sampler's by up to {difference:.2g}, allowed is "
                    f"{settings.logprob_tolerance:g} ({settings.group}.logprob_tolerance): rollout and learner do not "
                    "run the same weights, temperature or precision, and the ratio would mean nothing"
                )
        numbers = {"losses/logprob_max_difference": max(all_differences)}
        if recomputes:
            proximal = torch.cat(world.gather(now))
            batch, weights = self._decoupled(batch, proximal, stale)
            numbers |= weights
        return batch, numbers

    def _decoupled(
        self, batch: Batch, proximal: Float[Tensor, "B K"], stale: Bool[Tensor, " B"]
    ) -> tuple[Batch, dict[str, float]]:
        """The batch with `proximal` for the old log-probs, and weights where older weights have played."""
        old = proximal
        if not self.settings.recompute_log_probs:
            old = torch.where(stale[:, None], proximal, batch.log_probs)
        if not stale.any():
            return replace(batch, log_probs=old), {}
        weights = importance_weights(proximal, batch.log_probs, self.importance_cap)
        weights = torch.where(stale, weights, torch.ones_like(weights))
        numbers = {
            "losses/stale_turns": float(stale.float().mean()),
            "losses/importance_mean": weights.mean().item(),
            "losses/importance_max": weights.max().item(),
        }
        return replace(batch, log_probs=old, importance=weights), numbers

    def improve(
        self, batch: Batch, order: Order, progress: float, scale: float = 1.0
    ) -> dict[str, float]:
        """Several epochs over the batch, at `scale` times the learning rate; stops early at `target_kl`.

        Raises TrainingDivergedError where a number on the way is not finite, or what the policy says in the end.
        """
        settings, tally = self.settings, Tally()
        steps = 0
        kept = None if self.kept is None else self.kept.turns()
        imitated = None if kept is None else kept.minibatches(
            self.gradients.own_shards, settings.minibatch, replace(order, purpose="kept")
        )  # fmt: skip
        for parts in minibatches(
            batch.shards, self.gradients.own_shards, settings.epochs, settings.minibatch, order
        ):
            stats = self.backward(batch, parts)
            if settings.target_kl > 0 and stats["losses/approx_kl_k3"] > settings.target_kl:
                tally.add({"losses/stopped_by_kl": 1.0})
                break
            if kept is not None and imitated is not None:
                stats |= self._imitate(batch, kept, next(imitated))
            stats |= self.step(stats["losses/policy"], progress, scale)
            tally.add(stats)
            steps += 1
        self.require_finite_policy(batch)
        return tally.means() | {"losses/policy_steps": float(steps)}

    def backward(self, batch: Batch, parts: Parts) -> dict[str, float]:
        """Gradients of one minibatch, given as a part for each shard; returns its statistics."""
        parameters = self.policy.policy_parameters()
        if self.joint_critic is not None:
            parameters = parameters + self.joint_critic.parameters()
        return self.gradients.backward(lambda part: self._loss(batch, part), parts, parameters)

    def _imitate(self, batch: Batch, kept: KeptTurns, parts: Parts) -> dict[str, float]:
        """Add the gradient of imitating some kept turns to the one that is there."""
        coefficient = self.settings.self_imitation_coef

        def loss_of(rows: Int64[Tensor, " b"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
            if len(rows):
                seen, tokens, weights = kept.observe(rows), kept.tokens[rows], kept.weights[rows]
            else:  # an empty pass
                blank = batch.blank()
                seen, tokens, weights = blank.observation, blank.tokens, torch.zeros(1)
            now = self.policy.evaluate(seen, self._to(tokens), batch.temperature).log_probs
            likelihood = turn_mean(now * self._to(weights)[:, None])
            return -coefficient * likelihood, {"losses/imitation": -likelihood.item()}

        parameters = self.policy.policy_parameters()
        before = [parameter.grad for parameter in parameters]
        stats = self.gradients.backward(loss_of, parts, parameters)
        for parameter, grad in zip(parameters, before, strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else grad + parameter.grad
        return stats

    def step_beside(self, loss: float) -> dict[str, float]:
        """The step of a critic in the policy's own network."""
        if self.joint_critic is None:
            return {}
        stats = self.joint_critic.clip(loss)
        self.joint_critic.step()
        return stats

    def _loss(
        self, batch: Batch, rows: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        settings = self.settings
        if not len(rows):
            batch, rows = batch.blank(), torch.zeros(1, dtype=torch.int64)
        observation, tokens = batch.observe(rows), self._to(batch.tokens[rows])
        old, advantages = self._to(batch.log_probs[rows]), self._to(batch.advantages[rows])
        now: Evaluation = self.policy.evaluate(observation, tokens, batch.temperature)
        loss = clipped_surrogate(
            now.log_probs,
            old,
            advantages,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            dual_clip=settings.dual_clip,
            ratio=settings.ratio,
            mask=now.mask,
            importance=None if batch.importance is None else self._to(batch.importance[rows]),
        )
        per_token = masked_mean(now.entropy.detach(), now.mask)
        stats = {"losses/policy": loss.item(), "losses/entropy": per_token.item()}
        moved = surrogate_statistics(
            now.log_probs,
            old,
            settings.clip_low,
            settings.clip_high,
            ratio=settings.ratio,
            mask=now.mask,
        )
        stats |= {f"losses/{name}": float(number) for name, number in moved._asdict().items()}
        if settings.entropy_coef > 0:
            loss = loss - settings.entropy_coef * turn_mean(now.entropy)
        if settings.kl_coef > 0:
            reference = self.policy.reference_log_probs(observation, tokens, batch.temperature)
            divergence = turn_mean(kl_estimate(now.log_probs, reference, settings.kl_estimator))
            stats["losses/kl_reference"] = divergence.item()
            loss = loss + settings.kl_coef * divergence
        if settings.self_imitation_coef > 0 and self.kept is None:
            own_success = self._to(batch.succeeded[rows]).float()
            likelihood = turn_mean(now.log_probs * own_success[:, None])
            stats["losses/imitation"] = -likelihood.item()
            loss = loss - settings.self_imitation_coef * likelihood
        if self.joint_critic is not None:
            assert now.values is not None  # a ValuePolicy gives them
            value_loss, numbers = self.joint_critic.joint_loss(batch, rows, now.values)
            stats |= numbers
            loss = loss + value_loss
        return loss, stats

    def _to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)
