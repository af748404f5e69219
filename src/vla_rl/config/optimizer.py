"""AdamW on the policy's parameters, and its learning rate over the run."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.config.bounds import (
    Config,
    LearningRate,
    Positive,
    Share,
    ShareBelowOne,
    WeightDecay,
    Whole,
)


@dataclass(frozen=True)
class OptimizerConfig(Config, group="optimizer"):
    """AdamW on the policy's parameters, and its learning rate over the run.

    The rate at optimizer step i (from 0), with a share p of the run done (see `ScheduleConfig`), is

        learning_rate * min(1, (i + 1) / warmup_steps) * (1 - (1 - final_learning_rate) * p)
    """

    learning_rate: LearningRate = 1e-4
    """Peak learning rate of the policy."""
    adam_beta2: ShareBelowOne = 0.99
    """Decay of Adam's second moment, for policy and critic; the first moment's is 0.9."""
    adam_eps: Positive = 1e-8
    """Added to the root of Adam's second moment."""
    weight_decay: WeightDecay = 0.0
    """AdamW's decoupled weight decay on the policy."""
    warmup_steps: Whole = 24
    """Linear learning-rate warm-up in policy optimizer steps."""
    final_learning_rate: Share = 1.0
    """The policy learning rate decays linearly to this fraction of itself over the run's iterations or episodes, over
    its minutes where it has no other end; 1 keeps it."""
    max_grad_norm: Positive = 1.0
    """The policy's gradient is scaled down to this norm where it is longer."""
