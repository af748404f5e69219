"""Which task the next episode plays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_rl.config.bounds import Config, Count, Positive, Share, ShareBelowOne


@dataclass(frozen=True)
class CurriculumConfig(Config, group="curriculum"):
    """Which task the next episode plays."""

    mode: Literal["paper", "frontier", "levels", "uniform"] = "paper"
    """paper: P ~ exp((0.5 - s)/tau) as printed. frontier: P ~ exp(-|s - 0.5|/tau). levels: harder tasks open when
    the level's recent success passes `level_threshold`. uniform: every task alike."""
    tau: Positive = 0.4
    """Temperature of `paper` and `frontier`; the paper gives none."""
    window: Count = 40
    """Success of a task is its mean over so many recent episodes."""
    prior: Share = 0.5
    """Success assumed before a task has been played."""
    floor: ShareBelowOne = 0.02
    """Least probability of any task, so that none is forgotten or never tried."""
    level_threshold: Share = 0.7
    """Success on the current level's tasks at which the next level opens."""
    level_window: Count = 10
    """Recent episodes of the current level over which that success is taken."""
    level_share: Share = 0.7
    """Share of draws from the current level in `levels`; the rest from the earlier ones."""
