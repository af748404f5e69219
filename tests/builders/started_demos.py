"""Demonstrations of the toy benchmark with the simulator's states, of some length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vla_rl.config import DemosConfig, EnvConfig
from vla_rl.envs.defaults import laptop_env
from vla_rl.recipes.demos import collect_demos

# short actions, so that a demonstration has several
TOY: EnvConfig = replace(laptop_env("toy"), action_repeat=5, horizon=12, num_envs=8, num_workers=0)


def toy_demos(
    folder: Path, episodes: int = 4, *, snapshots: bool = True, env: EnvConfig = TOY
) -> Path:
    """A dataset in `folder`, which must not exist yet."""
    one = replace(env, num_workers=1)  # of the processes that play the demonstrations
    return collect_demos(
        DemosConfig(env=one, out=str(folder), episodes_per_task=episodes, snapshots=snapshots)
    )
