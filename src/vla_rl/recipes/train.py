"""Which recipe trains: `config.algorithm` names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vla_rl.algorithms.learner import TrainingDivergedError
from vla_rl.algorithms.registry import require_algorithm
from vla_rl.config import TrainConfig
from vla_rl.distributed import SingleProcess, World
from vla_rl.recipes import train_grpo, train_ppo, train_tpo

Recipe = Callable[[TrainConfig, Path | None, World], Path]

RECIPES: dict[str, Recipe] = {"grpo": train_grpo.train, "tpo": train_tpo.train}
"""Algorithm -> its recipe. The others learn from windows of turns, as PPO does."""


def train(config: TrainConfig, resume: Path | None = None, world: World = SingleProcess()) -> Path:
    """Improve `config.policy.checkpoint` by practice with the algorithm of the configuration; returns the run folder.

    `resume` is the folder of a run to go on with (its own, saved config is then expected in `config`). Ctrl-C, SIGTERM
    and SIGHUP end it after the current iteration: everything is saved, then `Stopped`, a KeyboardInterrupt, is raised.
    """
    require_algorithm(config.algorithm)
    return RECIPES.get(config.algorithm, train_ppo.train)(config, resume, world)


__all__ = ["RECIPES", "TrainingDivergedError", "train"]
