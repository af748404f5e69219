"""The half of PPO that learns V: a separate critic on a replay of windows, or a head on the policy's own network."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vla_rl.algorithms.advantages import Batch
from vla_rl.algorithms.gradients import Tally, ThreadedGradients
from vla_rl.algorithms.learner import require_finite_step, require_finite_weights
from vla_rl.algorithms.minibatches import minibatches
from vla_rl.config import CriticConfig, PPOConfig
from vla_rl.functional import (
    clipped_value_loss,
    explained_variance,
    huber_value_loss,
    squared_value_loss,
)
from vla_rl.policies.policy import ValuePolicy
from vla_rl.types import Observation


class CriticUpdate:
    """The critic's optimizer, its warm-up, and the replay of the separate kind."""

    def __init__(
        self,
        policy: ValuePolicy,
        config: PPOConfig,
        critic: CriticConfig,
        adam_beta2: float,
        gradients: ThreadedGradients,
    ) -> None:
        self.policy, self.config, self.gradients = policy, config, gradients
        self.separate = critic.kind == "separate"
        self.device = policy.critic_parameters()[0].device
        self.optimizer = torch.optim.AdamW(
            policy.critic_parameters(),
            lr=config.critic_learning_rate,
            betas=(0.9, adam_beta2),
            weight_decay=0.0,
        )
        self.explained = False  # explained variance has been positive once
        self.replay: deque[tuple[Observation, Float[Tensor, " B"]]] = deque(
            maxlen=config.critic_replay
        )

    def explained_variance(self, batch: Batch) -> float:
        """How much of the targets' variance the values explained that were predicted while playing."""
        gather = self.gradients.world.gather
        values, returns = gather(batch.values), gather(batch.value_targets)
        explained = float(explained_variance(values=torch.cat(values), returns=torch.cat(returns)))
        self.explained = self.explained or explained > 0
        return explained

    def warming_up(self, iteration: int) -> bool:
        """Whether only the critic learns in this iteration."""
        config = self.config
        if iteration < config.critic_warmup:
            return True
        patient = config.critic_warmup_until_explained and iteration < 10 * max(
            1, config.critic_warmup
        )
        return patient and not self.explained

    def improve(self, batch: Batch, warming: bool, order: torch.Generator) -> dict[str, float]:
        """What the critic learns by itself; a shared one learns with the policy once the warm-up is over."""
        if self.separate:
            return self._fit_separate_critic(batch, order)
        return self._fit_value_head(batch, order) if warming else {}

    def _fit_separate_critic(self, batch: Batch, order: torch.Generator) -> dict[str, float]:
        """Fit the separate critic to the targets of the last windows."""
        self.replay.append((batch.observation, batch.value_targets))
        observation = Observation.concatenate([observation for observation, _ in self.replay])
        targets = torch.cat([targets for _, targets in self.replay])
        first = not self.optimizer.state
        epochs = self.config.critic_first_epochs if first else self.config.critic_epochs
        return self._fit(observation, targets, None, epochs, order)

    def _fit_value_head(self, batch: Batch, order: torch.Generator) -> dict[str, float]:
        """Warm-up of a shared critic: only the head learns, the trunk sees no gradient."""
        self.policy.detach_values = True
        metrics = self._fit(
            batch.observation, batch.value_targets, batch.values, self.config.critic_epochs, order
        )
        self.policy.detach_values = False
        return metrics

    def _fit(
        self,
        observation: Observation,
        targets: Float[Tensor, " B"],
        old_values: Float[Tensor, " B"] | None,
        epochs: int,
        order: torch.Generator,
    ) -> dict[str, float]:
        """Regress V on its targets; nothing but the critic's parameters moves."""
        config, tally = self.config, Tally()

        def loss_of(rows: Int64[Tensor, " b"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
            values = self.policy.values(observation.select(rows.numpy()))
            old = None if old_values is None else self._to(old_values[rows])
            loss = self._loss(values, self._to(targets[rows]), old)
            return loss, {"losses/value": loss.item()}

        for rows in minibatches(
            len(targets), epochs, config.minibatch, order, self.gradients.world
        ):
            stats = self.gradients.backward(loss_of, rows, self.parameters())
            stats |= self.clip(stats["losses/value"])
            self.step()
            tally.add(stats)
        return tally.means()

    def parameters(self) -> list[nn.Parameter]:
        """What the critic's optimizer trains."""
        return self.policy.critic_parameters()

    def joint_loss(
        self, batch: Batch, rows: Int64[Tensor, " b"], values: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The value loss as a term of the policy's loss."""
        targets, old = self._to(batch.value_targets[rows]), self._to(batch.values[rows])
        loss = self._loss(values, targets, old)
        return self.config.value_coef * loss, {"losses/value": loss.item()}

    def clip(self, loss: float) -> dict[str, float]:
        """Clip the gradient; raises TrainingDivergedError where it or the loss is not finite."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.config.critic_max_grad_norm)
        require_finite_step(loss, norm, "critic")
        return {"losses/grad_norm_critic": norm.item()}

    def step(self) -> None:
        """One optimizer step."""
        self.optimizer.step()
        require_finite_weights(self.parameters(), "critic", self.config.critic_learning_rate)

    def _loss(
        self,
        values: Float[Tensor, " b"],
        targets: Float[Tensor, " b"],
        old: Float[Tensor, " b"] | None,
    ) -> Float[Tensor, ""]:
        config = self.config
        if config.value_clip > 0 and old is not None:
            return clipped_value_loss(
                values, targets, old, config.value_clip, kind=config.value_loss
            )
        if config.value_loss == "huber":
            return huber_value_loss(values, targets)
        return squared_value_loss(values, targets)

    def _to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """The warm-up's memory and the replay; the optimizer is saved beside it."""
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
        return {"explained": self.explained, "replay": replay}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.explained = bool(state["explained"])
        self.replay.clear()
        for part in state["replay"]:
            seen = Observation(
                part["images"], tuple(part["instructions"]), part["proprio"], part["time_fraction"]
            )
            self.replay.append((seen, part["targets"]))
