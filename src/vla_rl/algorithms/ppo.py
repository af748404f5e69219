"""PPO on action tokens: one `update` improves the policy from one window of play.

    L = - sum_k min(r_k A, clip(r_k, 1 - low, 1 + high) A)             the clipped surrogate
        - c_ent H(pi) + c_kl KL(pi || pi_ref) - c_sil 1[success] log pi(a)
        + c_v (V - target)^2                                            shared critic only

Schulman et al. 2017 (arXiv:1707.06347) with the log-prob of an action as the sum over its K tokens (VLA-RL,
arXiv:2505.18719, section 3.2). Policy and critic have an optimizer and a gradient clip each; during critic
warm-up the policy optimizer is not stepped at all (a step on zero gradients would starve Adam's second moment).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vla_rl.algorithms.advantages import Batch
from vla_rl.algorithms.gradients import Tally, ThreadedGradients
from vla_rl.config import CriticConfig, OptimizerConfig, PPOConfig, UserError
from vla_rl.functional import (
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    huber_value_loss,
    kl_estimate,
    squared_value_loss,
    surrogate_statistics,
    turn_mean,
)
from vla_rl.policies.policy import Evaluation, ValuePolicy
from vla_rl.types import Observation


class TrainingDivergedError(UserError):
    """A loss or a gradient is not finite, or sampler and learner disagree. No weight was changed by it."""


class PPO:
    """The learner: two optimizers, the learning-rate schedule, and the separate critic's replay."""

    def __init__(
        self,
        policy: ValuePolicy,
        config: PPOConfig,
        optimizer: OptimizerConfig,
        critic: CriticConfig,
        seed: int,
        threads: int = 1,
    ) -> None:
        self.policy, self.config, self.critic, self.seed = policy, config, critic, seed
        self.optimizer = optimizer
        self.device = policy.policy_parameters()[0].device
        self.gradients = ThreadedGradients(threads, config.micro_batch, self.device)
        betas = (0.9, optimizer.adam_beta2)
        self.policy_optimizer = torch.optim.AdamW(
            policy.policy_parameters(),
            lr=optimizer.learning_rate,
            betas=betas,
            eps=optimizer.adam_eps,
            weight_decay=optimizer.weight_decay,
        )
        self.critic_optimizer = torch.optim.AdamW(
            policy.critic_parameters(),
            lr=config.critic_learning_rate,
            betas=betas,
            weight_decay=0.0,
        )
        self.policy_steps = 0
        self.explained = False  # explained variance has been positive once
        self.replay: deque[tuple[Observation, Float[Tensor, " B"]]] = deque(
            maxlen=config.critic_replay
        )

    def warming_up(self, iteration: int) -> bool:
        """Whether only the critic learns in this iteration."""
        config = self.config
        if iteration < config.critic_warmup:
            return True
        patient = config.critic_warmup_until_explained and iteration < 10 * max(
            1, config.critic_warmup
        )
        return patient and not self.explained

    def update(self, batch: Batch, iteration: int, progress: float) -> dict[str, float]:
        """Improve critic and policy from one batch; `progress` in [0, 1] drives the learning-rate decay.

        Returns the metrics of this update. Raises TrainingDivergedError before any weight is touched by a value
        that is not finite.
        """
        order = torch.Generator().manual_seed(self.seed * 1_000_003 + iteration)
        metrics = {
            "losses/explained_variance": float(
                explained_variance(values=batch.values, returns=batch.value_targets)
            )
        }
        self.explained = self.explained or metrics["losses/explained_variance"] > 0
        warming = self.warming_up(iteration)
        metrics["losses/critic_warmup"] = float(warming)
        batch, difference = self._check_sampler(batch, order)
        metrics["losses/logprob_max_difference"] = difference
        if self.critic.kind == "separate":
            self.replay.append((batch.observation, batch.value_targets))
            metrics |= self._fit_separate_critic(order)
        elif warming:
            metrics |= self._fit_value_head(batch, order)
        if not warming:
            metrics |= self._improve_policy(batch, order, progress)
        return metrics

    def _check_sampler(self, batch: Batch, order: torch.Generator) -> tuple[Batch, float]:
        """Compare the sampler's log-probs with the learner's, before anything has moved: on a minibatch, or on all
        turns where the learner's own are to be the old ones. Returns the batch to learn from and the difference.
        """
        rows = torch.randperm(len(batch), generator=order)[: self.config.minibatch]
        if self.config.recompute_log_probs:
            rows = torch.arange(len(batch))
        now = self._learner_log_probs(batch, rows)
        difference = float((now - batch.log_probs[rows]).abs().max())
        if not difference <= self.config.logprob_tolerance:
            raise TrainingDivergedError(
                f"the learner's log-probs differ from the sampler's by up to {difference:.2g}, allowed is "
                f"{self.config.logprob_tolerance:g} (ppo.logprob_tolerance): rollout and learner do not run the "
                "same weights, temperature or precision, and PPO's ratio would mean nothing"
            )
        return (
            replace(batch, log_probs=now) if self.config.recompute_log_probs else batch
        ), difference

    def _learner_log_probs(self, batch: Batch, rows: Int64[Tensor, " b"]) -> Float[Tensor, "b K"]:
        parts = []
        for part in torch.split(rows, self.config.micro_batch or self.config.minibatch):
            with torch.no_grad():
                evaluation = self.policy.evaluate(
                    _rows(batch, part), self._to(batch.tokens[part]), batch.temperature
                )
            parts.append(evaluation.log_probs.cpu())
        return torch.cat(parts)

    def _fit_separate_critic(self, order: torch.Generator) -> dict[str, float]:
        """Fit the separate critic to the targets of the last windows."""
        observation = Observation.concatenate([observation for observation, _ in self.replay])
        targets = torch.cat([targets for _, targets in self.replay])
        first = not self.critic_optimizer.state
        epochs = self.config.critic_first_epochs if first else self.config.critic_epochs
        return self._fit_critic(observation, targets, None, epochs, order)

    def _fit_value_head(self, batch: Batch, order: torch.Generator) -> dict[str, float]:
        """Warm-up of a shared critic: only the head learns, the trunk sees no gradient."""
        self.policy.detach_values = True
        metrics = self._fit_critic(
            batch.observation, batch.value_targets, batch.values, self.config.critic_epochs, order
        )
        self.policy.detach_values = False
        return metrics

    def _fit_critic(
        self,
        observation: Observation,
        targets: Float[Tensor, " B"],
        old_values: Float[Tensor, " B"] | None,
        epochs: int,
        order: torch.Generator,
    ) -> dict[str, float]:
        """Regress V on its targets; nothing but the critic's parameters moves."""
        parameters, tally = self.policy.critic_parameters(), Tally()

        def loss_of(rows: Int64[Tensor, " b"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
            values = self.policy.values(observation.select(rows.numpy()))
            old = None if old_values is None else self._to(old_values[rows])
            loss = self._value_loss(values, self._to(targets[rows]), old)
            return loss, {"losses/value": loss.item()}

        for rows in _minibatches(len(targets), epochs, self.config.minibatch, order):
            stats = self.gradients.backward(loss_of, rows, parameters)
            norm = nn.utils.clip_grad_norm_(parameters, self.config.critic_max_grad_norm)
            _guard(stats["losses/value"], norm, "critic")
            self.critic_optimizer.step()
            tally.add(stats | {"losses/grad_norm_critic": norm.item()})
        return tally.means()

    def _improve_policy(
        self, batch: Batch, order: torch.Generator, progress: float
    ) -> dict[str, float]:
        """Several epochs of the clipped objective."""
        config, tally = self.config, Tally()
        steps = 0
        for rows in _minibatches(len(batch), config.epochs, config.minibatch, order):
            stats = self._backward(batch, rows)
            if config.target_kl > 0 and stats["losses/approx_kl_k3"] > config.target_kl:
                tally.add({"losses/stopped_by_kl": 1.0})
                break
            stats |= self._step_policy(stats["losses/policy"], progress)
            tally.add(stats)
            steps += 1
        return tally.means() | {"losses/policy_steps": float(steps)}

    def _backward(self, batch: Batch, rows: Int64[Tensor, " b"]) -> dict[str, float]:
        """Gradients of one minibatch; returns its statistics."""
        parameters = self.policy.policy_parameters()
        if self.critic.kind == "shared":
            parameters = parameters + self.policy.critic_parameters()
        return self.gradients.backward(lambda part: self._loss(batch, part), rows, parameters)

    def _loss(
        self, batch: Batch, rows: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        config = self.config
        observation, tokens = _rows(batch, rows), self._to(batch.tokens[rows])
        old, advantages = self._to(batch.log_probs[rows]), self._to(batch.advantages[rows])
        now: Evaluation = self.policy.evaluate(observation, tokens, batch.temperature)
        loss = clipped_surrogate(
            now.log_probs,
            old,
            advantages,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
            ratio=config.ratio,
        )
        stats = {"losses/policy": loss.item(), "losses/entropy": now.entropy.mean().item()}
        moved = surrogate_statistics(
            now.log_probs, old, config.clip_low, config.clip_high, ratio=config.ratio
        )
        stats |= {f"losses/{name}": float(number) for name, number in moved._asdict().items()}
        if config.entropy_coef > 0:
            loss = loss - config.entropy_coef * turn_mean(now.entropy)
        if config.kl_coef > 0:
            reference = self.policy.reference_log_probs(observation, tokens, batch.temperature)
            divergence = turn_mean(kl_estimate(now.log_probs, reference, config.kl_estimator))
            stats["losses/kl_reference"] = divergence.item()
            loss = loss + config.kl_coef * divergence
        if config.self_imitation_coef > 0:
            own_success = self._to(batch.succeeded[rows]).float()
            likelihood = turn_mean(now.log_probs * own_success[:, None])
            stats["losses/imitation"] = -likelihood.item()
            loss = loss - config.self_imitation_coef * likelihood
        if self.critic.kind == "shared":
            targets, old_values = self._to(batch.value_targets[rows]), self._to(batch.values[rows])
            assert now.values is not None  # a ValuePolicy gives them
            value_loss = self._value_loss(now.values, targets, old_values)
            stats["losses/value"] = value_loss.item()
            loss = loss + config.value_coef * value_loss
        return loss, stats

    def _step_policy(self, loss: float, progress: float) -> dict[str, float]:
        config = self.optimizer
        warm = min(1.0, (self.policy_steps + 1) / max(1, config.warmup_steps))
        rate = (
            config.learning_rate
            * warm
            * (1 - (1 - config.final_learning_rate) * min(1.0, progress))
        )
        for group in self.policy_optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self.policy.policy_parameters(), config.max_grad_norm)
        _guard(loss, norm, "policy")
        stats = {"losses/grad_norm_policy": norm.item(), "losses/learning_rate": rate}
        if self.critic.kind == "shared":
            norm = nn.utils.clip_grad_norm_(
                self.policy.critic_parameters(), self.config.critic_max_grad_norm
            )
            _guard(loss, norm, "critic")
            self.critic_optimizer.step()
            stats["losses/grad_norm_critic"] = norm.item()
        self.policy_optimizer.step()
        self.policy_steps += 1
        return stats

    def _value_loss(
        self,
        values: Float[Tensor, " b"],
        targets: Float[Tensor, " b"],
        old: Float[Tensor, " b"] | None,
    ) -> Float[Tensor, ""]:
        if self.config.value_clip > 0 and old is not None:
            return clipped_value_loss(
                values, targets, old, self.config.value_clip, kind=self.config.value_loss
            )
        if self.config.value_loss == "huber":
            return huber_value_loss(values, targets)
        return squared_value_loss(values, targets)

    def _to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Counters and the critic's replay; the optimizers are saved beside it."""
        replay = [
            {
                "images": seen.images,
                "instructions": list(seen.instructions),
                "proprio": seen.proprio,
                "time_fraction": seen.time_fraction,
                "targets": targets,
            }
            for seen, targets in self.replay
        ]
        return {"policy_steps": self.policy_steps, "explained": self.explained, "replay": replay}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.policy_steps, self.explained = int(state["policy_steps"]), bool(state["explained"])
        self.replay.clear()
        for part in state["replay"]:
            seen = Observation(
                part["images"], tuple(part["instructions"]), part["proprio"], part["time_fraction"]
            )
            self.replay.append((seen, part["targets"]))


def _rows(batch: Batch, rows: Int64[Tensor, " b"]) -> Observation:
    return batch.observation.select(rows.numpy())


def _minibatches(
    total: int, epochs: int, size: int, order: torch.Generator
) -> Iterator[Int64[Tensor, " b"]]:
    """Every sample once per epoch, in a fresh order each time, in parts of nearly equal size."""
    for _ in range(epochs):
        yield from torch.chunk(torch.randperm(total, generator=order), max(1, total // size))


def _guard(loss: float, norm: Tensor, what: str) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm.item())):
        raise TrainingDivergedError(
            f"the {what} loss ({loss:g}) or its gradient norm ({norm.item():g}) is not finite; the step was not "
            "taken. Lower the learning rate, or look at the rewards and observations of the last rollout"
        )
