"""Which task the next episode plays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_rl.config.bounds import Config, Count, Positive, Share, ShareBelowOne
from vla_rl.config.errors import require


@dataclass(frozen=True)
class CurriculumConfig(Config, group="curriculum"):
    """Which task the next episode plays."""

    mode: Literal["paper", "frontier", "levels", "learnable", "progress", "uniform"] = "paper"
    """paper: P ~ exp((0.5 - s)/tau) as printed. frontier: P ~ exp(-|s - 0.5|/tau). levels: harder tasks open, a
    level at a time, when the current level's recent success passes `level_threshold`. learnable: P ~ s (1 - s), so that
    tasks never solved and always solved get the floor. progress: P ~ |mean of the last `window` outcomes - mean of the
    last `slow_window`|. uniform: every task alike."""
    tau: Positive = 0.4
    """Temperature of `paper` and `frontier`; the paper gives none."""
    window: Count = 40
    """Success of a task is its mean over so many recent episodes."""
    slow_window: Count = 200
    """Episodes of the slow average in `progress`; a task played less often gets as much as any."""
    prior: Share = 0.5
    """Success assumed before a task has been played."""
    floor: ShareBelowOne = 0.02
    """Least probability of any task, so that none is forgotten or never tried."""
    levels: Count = 3
    """Into how many levels of about equal size the tasks are cut in `levels`, the easiest first."""
    level_threshold: Share = 0.7
    """The next level opens when the mean of the current level's recent batch rates is above this."""
    level_window: Count = 10
    """So many recent batch rates; each is the current level's share of successes in one iteration."""
    level_share: Share = 0.7
    """Share of draws from the current level in `levels`; the rest from all open tasks, its own included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.mode != "progress" or self.slow_window > self.window,
            f"curriculum.slow_window ({self.slow_window}) must be more than curriculum.window ({self.window}): "
            "progress is the difference between the two averages",
        )
