"""How the policy plays between two updates."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.config.bounds import Config, Count, Temperature


@dataclass(frozen=True)
class RolloutConfig(Config, group="rollout"):
    """How the policy plays between two updates."""

    turns: Count = 50
    """Turns that every environment plays in one iteration; an episode goes on in the next iteration where they end."""
    temperature: Temperature = 1.0
    """Sampling temperature of the action tokens. The loss uses the same one. `rollout/entropy` says how uncertain play is
    at it: 0.4 to 0.6 nats a token were the best where several were tried (docs/results/temperature.md)."""
