"""How long a training run lasts."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.config.bounds import Config, NotNegative, Whole
from vla_rl.config.errors import require


@dataclass(frozen=True)
class ScheduleConfig(Config, group="schedule"):
    """How long a training run lasts: it ends with the first of these limits, and 0 switches a limit off.

    The share of the run that is done, which drives the decay of the learning rate, is the largest of the limits'
    shares.
    """

    iterations: Whole = 60
    """Updates; each follows one window of `rollout.turns` turns in every environment."""
    minutes: NotNegative = 0.0
    """Minutes of training; evaluations do not count."""
    episodes: Whole = 0
    """Episodes of practice that came to their end. The run ends with the iteration in which they are reached."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.iterations > 0 or self.minutes > 0 or self.episodes > 0,
            "a run needs an end: set schedule.iterations, schedule.minutes or schedule.episodes, all are 0",
        )
