"""AdamW on the policy's parameters, and its learning rate over the run."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.config.errors import require


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW on the policy's parameters, and its learning rate over the run.

    The rate at optimizer step i (from 0), with a share p of the run done (see `ScheduleConfig`), is

        learning_rate * min(1, (i + 1) / warmup_steps) * (1 - (1 - final_learning_rate) * p)
    """

    learning_rate: float = 1e-4
    """Peak learning rate of the policy."""
    adam_beta2: float = 0.99
    """Decay of Adam's second moment, for policy and critic; the first moment's is 0.9."""
    adam_eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay on the policy."""
    warmup_steps: int = 24
    """Linear learning-rate warm-up in policy optimizer steps."""
    final_learning_rate: float = 1.0
    """The policy learning rate decays linearly to this fraction of itself over the run; 1 keeps it."""
    max_grad_norm: float = 1.0
    """The policy's gradient is scaled down to this norm where it is longer."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            require(value > 0, f"optimizer.{name} must be positive, got {value}")
        require(
            self.warmup_steps >= 0,
            f"optimizer.warmup_steps must be 0 or more, got {self.warmup_steps}",
        )
        require(
            0 <= self.final_learning_rate <= 1,
            f"optimizer.final_learning_rate must lie in [0, 1], got {self.final_learning_rate}",
        )
