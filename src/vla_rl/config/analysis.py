"""What practice changed: action coverage, episode length, kinds of failures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le

from vla_rl.config.bounds import Config, Count, Seed, Whole, Workers


@dataclass(frozen=True)
class AnalysisConfig(Config):
    """Say what practice changed in a policy, and how its episodes fail."""

    run: Path
    """A run folder of `vla-rl train`, finished or not, or a quickstart's."""
    against: str = ""
    """The policy to compare with, before practice; empty takes the one that the run started from."""
    episodes_per_task: Count | None = None
    """Held-out initial states to play for each task; by default the evaluation protocol's."""
    videos: bool = True
    """Write a video of one episode of each kind of failure, before and after practice."""
    strips: Whole = 0
    """Film strips of so many failed episodes, in an order that tells nothing, to be labelled by eye."""
    labels: Path | None = None
    """A CSV file with the columns strip and label, made by eye from such strips of the same seed: says how far both
    agree."""
    plateau_window: Annotated[int, Ge(3), Le(100_000)] = 15
    """Iterations that a plateau lasts at least."""
    plateau_tolerance: Annotated[float, Gt(0), Le(1)] = 0.05
    """Change over a plateau at most: of the success rate, and of the episode length as a share of the horizon."""
    seed: Seed = 0
    """Of sampled play, of the bootstrap and of the strips' order."""
    workers: Workers = 0
    """Simulator processes; 0 takes one per CPU core. The result does not depend on it."""
