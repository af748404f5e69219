"""Which choices of the recipe to take away, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from vla_rl.config.bounds import Candidates, Config, Count, NotNegative, Workers
from vla_rl.config.errors import ConfigError, nearest, require

CELLS = ("full", "no-reward", "no-curriculum", "temperature", "no-warmup", "learning-rate")
"""The paper's ablations (arXiv 2505.18719): each differs from `full` in one thing."""


@dataclass(frozen=True)
class AblationConfig(Config):
    """Train a preset whole and without each of its parts, over several seeds, and compare."""

    preset: str = "metaworld-mt5"
    """Training preset to take apart."""
    checkpoint: str = ""
    """Policy to start every run from; needed unless the preset starts from random weights, and always to build up."""
    reward_kind: str = ""
    """Dense reward of the whole recipe, as in `reward.kind`; empty takes the preset's, or process where a model is
    given. Without any the cell no-reward is left out."""
    reward_model: str = ""
    """Folder of a process reward model, as in `reward.model`."""
    out: str = "runs/ablation"
    """Folder of all runs, of table.md and of ablation.png."""
    cells: tuple[str, ...] = CELLS
    """What to train: `full`, and any of no-reward, no-curriculum, temperature, no-warmup, learning-rate."""
    build_up: bool = False
    """Instead of taking the recipe apart, build it up: fine-tuning, the reward model, PPO, the curriculum, search at
    test time, each row with one part more."""
    best_of: Candidates = 8
    """Building up: candidates of each decision, where the reward model chooses."""
    seeds: Count = 3
    """Runs per cell, with seeds 0, 1, ..."""
    minutes: NotNegative = 0.0
    """Minutes of PPO for each run, if positive; else `iterations` decide."""
    iterations: Count = 60
    """PPO updates of each run, where no `minutes` are given."""
    parallel: Annotated[int, Ge(1), Le(1024)] = 1
    """Runs at a time. Each wants `cores` of its own."""
    cores: Workers = 0
    """Simulator processes and learner threads of each run; 0 shares out the machine's cores."""
    episodes_per_task: Count | None = None
    """Held-out initial states per task to evaluate on; by default the protocol's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for cell in self.cells:
            if cell not in CELLS:
                raise ConfigError(f"ablate: there is no cell {cell!r}.{nearest(cell, CELLS)}")
        require("full" in self.cells, "ablate: the cell full is what the others are compared with")
        require(
            not self.build_up or self.best_of > 1,
            "best_of: expected at least 2 candidates to choose from, got 1",
        )
