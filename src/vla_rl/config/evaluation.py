"""The evaluation protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_rl.config.errors import require


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation protocol: each (task, initial state) exactly once."""

    suite: str = ""
    """Suite to evaluate on; empty takes the training suite."""
    split: Literal["auto", "held-out", "train", "all"] = "auto"
    """Initial states to play: those never trained on, the others, or all. auto is the benchmark's protocol: held-out on
    Meta-World, all on LIBERO."""
    episodes_per_task: int | None = None
    """The first so many of them; by default the protocol's: 30 on Meta-World, all on LIBERO."""
    temperature: float = 0.0
    """0 is greedy; above 0 samples, with randomness fixed by (seed, task, initial state, turn)."""
    seed: int = 0
    videos: int = 0
    """Episodes per task of which the images are kept (first successes and failures alike)."""

    def __post_init__(self) -> None:
        require(
            self.episodes_per_task is None or self.episodes_per_task >= 1,
            f"episodes_per_task must be at least 1, got {self.episodes_per_task}: there would be nothing to evaluate",
        )
        require(
            self.temperature >= 0,
            f"temperature must be 0 (greedy) or positive, got {self.temperature}",
        )
