"""The half of PPO that learns V: a separate critic on a replay of windows, or a head on the policy's own network."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vla_rl.algorithms.advantages import Batch
from vla_rl.algorithms.gradients import Gradients, Tally
from vla_rl.algorithms.learner import require_finite_step, require_finite_weights
from vla_rl.algorithms.minibatches import Order, minibatches
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
        gradients: Gradients,
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
        self.replay: deque[_Window] = deque(maxlen=config.critic_replay)

    def explained_variance(self, batch: Batch) -> float:
        """How much of the targets' variance the values explained that were predicted while playing."""
        explained = float(explained_variance(values=batch.values, returns=batch.value_targets))
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

    def improve(self, batch: Batch, warming: bool, order: Order) -> dict[str, float]:
        """What the critic learns by itself; a shared one learns with the policy once the warm-up is over."""
        if self.separate:
            return self._fit_separate_critic(batch, order)
        return self._fit_value_head(batch, order) if warming else {}

    def _fit_separate_critic(self, batch: Batch, order: Order) -> dict[str, float]:
        """Fit the separate critic to the targets of the last windows."""
        self.replay.append(
            _Window(batch.observation, batch.value_targets, batch.shards, batch.first)
        )
        first = not self.optimizer.state
        epochs = self.config.critic_first_epochs if first else self.config.critic_epochs
        return self._fit(list(self.replay), None, epochs, order)

    def _fit_value_head(self, batch: Batch, order: Order) -> dict[str, float]:
        """Warm-up of a shared critic: only the head learns, the trunk sees no gradient."""
        self.policy.detach_values = True
        window = _Window(batch.observation, batch.value_targets, batch.shards, batch.first)
        metrics = self._fit([window], batch.values, self.config.critic_epochs, order)
        self.policy.detach_values = False
        return metrics

    def _fit(
        self,
        windows: Sequence[_Window],
        old_values: Float[Tensor, " B"] | None,
        epochs: int,
        order: Order,
    ) -> dict[str, float]:
        """Regress V on its targets; nothing but the critic's parameters moves."""
        config, tally = self.config, Tally()
        observation = Observation.concatenate([window.observation for window in windows])
        targets = torch.cat([window.targets for window in windows])
        shards = np.concatenate([window.shards for window in windows])
        places = np.concatenate(_places(windows))

        def loss_of(rows: Int64[Tensor, " b"]) -> tuple[Float[Tensor, ""], dict[str, float]]:
            if len(rows):
                seen = observation.select(places[rows.numpy()])
            else:  # an empty pass
                seen, rows = observation.blank(), torch.zeros(1, dtype=torch.int64)
            values = self.policy.values(seen)
            old = None if old_values is None else self._to(old_values[rows])
            loss = self._loss(values, self._to(targets[rows]), old)
            return loss, {"losses/value": loss.item()}

        for parts in minibatches(
            shards, self.gradients.own_shards, epochs, config.minibatch, order
        ):
            stats = self.gradients.backward(loss_of, parts, self.parameters())
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
        norm = self.gradients.clip(self.parameters(), self.config.critic_max_grad_norm)
        require_finite_step(loss, norm, "critic")
        return {"losses/grad_norm_critic": norm.item()}

    def step(self) -> None:
        """One optimizer step."""
        self.optimizer.step()
        are_finite = self.gradients.finite(self.parameters())
        require_finite_weights(are_finite, "critic", self.config.critic_learning_rate)

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
        """The warm-up's memory and the replay, of all processes; the optimizer is saved beside it."""
        replay: list[dict[str, Any]] = []
        for window in self.replay:
            seen = Observation.concatenate(self.gradients.world.gather(window.observation))
            replay.append(
                {
                    "images": seen.images,
                    "instructions": list(seen.instructions),
                    "proprio": seen.proprio,
                    "time_fraction": seen.time_fraction,
                    "targets": window.targets,
                    "shards": window.shards,
                }
            )
        return {"explained": self.explained, "replay": replay}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Runs of before had no shards: theirs are cut into equal parts."""
        self.explained = bool(state["explained"])
        own, shards = self.gradients.own_shards, self.gradients.shards
        count = shards.count if shards else 1
        self.replay.clear()
        for part in state["replay"]:
            seen = Observation(
                part["images"], tuple(part["instructions"]), part["proprio"], part["time_fraction"]
            )
            of = part.get("shards", np.arange(len(seen)) * count // max(1, len(seen)))
            mine = np.arange(len(of))
            if own is not None:
                mine = np.flatnonzero((of >= own.start) & (of < own.stop))
            first = int(mine[0]) if len(mine) else 0
            self.replay.append(_Window(seen.select(mine), part["targets"], of, first))


@dataclass(frozen=True)
class _Window:
    """What the critic learns from one window of play; observations are of this process's turns alone."""

    observation: Observation
    targets: Float[Tensor, " B"]
    shards: Int64[np.ndarray, " B"]
    first: int  # of this process's turns


def _places(windows: Sequence[_Window]) -> list[Int64[np.ndarray, ...]]:
    """Where a turn's observation lies among this process's of all windows; -1: with another process."""
    places, before = [], 0
    for window in windows:
        place = np.full(len(window.shards), -1)
        own = len(window.observation)
        place[window.first : window.first + own] = np.arange(before, before + own)
        places.append(place)
        before += own
    return places
