"""How the policy plays between two updates."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.config.errors import require


@dataclass(frozen=True)
class RolloutConfig:
    """How the policy plays between two updates."""

    turns: int = 50
    """Turns that every environment plays in one iteration; an episode goes on in the next iteration where they end."""
    temperature: float = 1.0
    """Sampling temperature of the action tokens. The loss uses the same one."""

    def __post_init__(self) -> None:
        require(self.turns >= 1, f"rollout.turns must be at least 1, got {self.turns}")
        require(
            self.temperature > 0, f"rollout.temperature must be positive, got {self.temperature}"
        )
