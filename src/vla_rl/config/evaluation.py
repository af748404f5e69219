"""The evaluation protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_rl.config.bounds import Config, Count, Seed, TemperatureOrGreedy, Whole


@dataclass(frozen=True)
class EvalConfig(Config, group="eval"):
    """Evaluation protocol: each (task, initial state) exactly once."""

    suite: str = ""
    """Suite to evaluate on; empty takes the training suite."""
    split: Literal["auto", "held-out", "train", "all"] = "auto"
    """Initial states to play: those never trained on, the others, or all. auto is the benchmark's protocol: all on
    LIBERO, held-out on the others."""
    episodes_per_task: Count | None = None
    """The first so many of them; by default the protocol's: all on LIBERO, 30 on the others."""
    temperature: TemperatureOrGreedy = 0.0
    """0 is greedy; above 0 samples, with randomness fixed by (seed, task, initial state, turn)."""
    seed: Seed = 0
    """Of sampled play; greedy play does not depend on it."""
    videos: Whole = 0
    """Episodes per task of which the images are kept (first successes and failures alike)."""
