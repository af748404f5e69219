"""Which task the next episode plays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_rl.config.errors import require


@dataclass(frozen=True)
class CurriculumConfig:
    """Which task the next episode plays."""

    mode: Literal["paper", "frontier", "levels", "uniform"] = "paper"
    """paper: P ~ exp((0.5 - s)/tau) as printed. frontier: P ~ exp(-|s - 0.5|/tau). levels: harder tasks open when
    the level's recent success passes `level_threshold`. uniform: every task alike."""
    tau: float = 0.4
    """Temperature of `paper` and `frontier`; the paper gives none."""
    window: int = 40
    """Success of a task is its mean over so many recent episodes."""
    prior: float = 0.5
    """Success assumed before a task has been played."""
    floor: float = 0.02
    """Least probability of any task, so that none is forgotten or never tried."""
    level_threshold: float = 0.7
    level_window: int = 10
    level_share: float = 0.7
    """Share of draws from the current level in `levels`; the rest from the earlier ones."""

    def __post_init__(self) -> None:
        require(self.tau > 0, f"curriculum.tau must be positive, got {self.tau}")
        require(0 <= self.floor < 1, f"curriculum.floor must lie in [0, 1), got {self.floor}")
        require(self.window >= 1, f"curriculum.window must be at least 1, got {self.window}")
        require(
            self.level_window >= 1,
            f"curriculum.level_window must be at least 1, got {self.level_window}",
        )
        for name in ("prior", "level_threshold", "level_share"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"curriculum.{name} must lie in [0, 1], got {value}")
