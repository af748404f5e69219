"""PPO on action tokens: one `update` improves critic and policy from one window of play.

The policy's half is `PolicyUpdate`, the critic's is `CriticUpdate`. They have an optimizer and a gradient clip each.
During critic warm-up the policy optimizer is not stepped at all: a step on zero gradients would starve Adam's second
moment. Nor is it where a window says nothing of what succeeds, if `PPOConfig` asks to wait for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vla_rl.algorithms.advantages import Batch
from vla_rl.algorithms.critic_update import CriticUpdate
from vla_rl.algorithms.kept_successes import KeptSuccesses
from vla_rl.algorithms.learner_gradients import learner_gradients
from vla_rl.algorithms.minibatches import Order
from vla_rl.algorithms.policy_update import PolicyUpdate
from vla_rl.config import CriticConfig, OptimizerConfig, PPOConfig
from vla_rl.distributed.shards import Shards
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.policies.policy import ValuePolicy
from vla_rl.runtime.call_times import CallTimes, own_seconds


class PPO:
    """The learner of `algorithms.learner.Learner`'s protocol."""

    def __init__(
        self,
        policy: ValuePolicy,
        config: PPOConfig,
        optimizer: OptimizerConfig,
        critic: CriticConfig,
        seed: int,
        threads: int = 1,
        world: World = SingleProcess(),
        shards: Shards | None = None,
    ) -> None:
        """`shards`: how a run's environments are divided among its processes; None: there is one shard."""
        gradients, threaded = learner_gradients(policy, config.micro_batch, threads, world, shards)
        self.config, self.seed, self.gradients = config, seed, threaded
        self.times = {what: CallTimes() for what in ("check", "critic", "policy", "steps")}
        """What updates cost: passes of critic and policy where they are not sharded, and in `steps` this thread
        beside them, by minibatch."""
        shared = critic.kind == "shared"
        # a separate critic is no part of what is sharded
        of_critic = gradients if shared else threaded
        self.critic = CriticUpdate(policy, config, critic, optimizer.adam_beta2, of_critic)
        joint = self.critic if shared else None
        self.policy = PolicyUpdate(
            policy, config, optimizer, gradients, joint, config.importance_cap
        )
        if config.kept_successes > 0 and config.self_imitation_coef > 0:
            self.policy.kept = KeptSuccesses(config, gradients)

    def update(self, batch: Batch, iteration: int, progress: float) -> dict[str, float]:
        """Improve critic and policy from one batch, see `Learner.update`."""
        self._require_shards(batch)
        metrics = {"losses/explained_variance": self.critic.explained_variance(batch)}
        warming = self.critic.warming_up(iteration)
        metrics["losses/critic_warmup"] = float(warming)
        scale, numbers = self._rate_of(batch)
        metrics |= numbers
        rests = warming or scale == 0.0
        if self.policy.kept is not None:
            self.policy.kept.add(batch, iteration)
            metrics |= self.policy.kept.metrics()
        device = self.policy.device
        started = own_seconds(device)
        batch, numbers = self.policy.check_sampler(batch, Order(self.seed, iteration, "check"))
        metrics |= numbers
        checked = own_seconds(device)
        self.times["check"].add(1, checked - started)
        metrics |= self.critic.improve(batch, rests, Order(self.seed, iteration, "critic"))
        self._count("critic")
        if not rests:
            order = Order(self.seed, iteration, "policy")
            metrics |= self.policy.improve(batch, order, progress, scale)
            self._count("policy")
        self.times["steps"].seconds += own_seconds(device) - checked
        return metrics

    def _rate_of(self, batch: Batch) -> tuple[float, dict[str, float]]:
        """By how much the policy's learning rate is multiplied for this batch, 0: it takes no step; and numbers."""
        signal, config = batch.signal, self.config
        if signal is None:
            return 1.0, {}
        scale, numbers = 1.0, signal.metrics()
        if config.half_rate_outcomes > 0:
            scale = signal.outcomes / (signal.outcomes + config.half_rate_outcomes)
            numbers["losses/rate_scale"] = scale
        return 0.0 if config.wait_for_success and signal.is_dark else scale, numbers

    def _count(self, what: str) -> None:
        """Note what the last passes of critic or policy cost, and their minibatches among all `steps`."""
        gradients, steps = self.gradients, self.times["steps"]
        passes, minibatches = gradients.times.take(), gradients.minibatches
        gradients.minibatches = 0
        if gradients.threads == 1:  # else they ran beside this thread
            steps.seconds -= passes.seconds
        steps.calls += minibatches
        self.times[what].merge(passes)

    def _require_shards(self, batch: Batch) -> None:
        known = self.critic.gradients.shards
        if known is not None and len(batch) and batch.shards[-1] >= known.count:
            raise ValueError(
                f"the batch has turns of shard {batch.shards[-1]}, the learner knows {known.count} shards: give "
                "collector and learner the same `Shards`"
            )

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Both optimizers, by their names in a checkpoint."""
        return {
            "policy_optimizer": self.policy.optimizer,
            "critic_optimizer": self.critic.optimizer,
        }

    def state_dict(self) -> dict[str, Any]:
        """Counters and the critic's replay; the optimizers are saved beside it."""
        kept = {} if self.policy.kept is None else {"kept": self.policy.kept.state_dict()}
        return {"policy_steps": self.policy.steps, **self.critic.state_dict(), **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.policy.steps = int(state["policy_steps"])
        self.critic.load_state_dict(state)
        if self.policy.kept is not None and "kept" in state:
            self.policy.kept.load_state_dict(state["kept"])
