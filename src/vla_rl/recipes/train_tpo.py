"""TPO for a vision-language-action policy (GRAPE, arXiv:2411.19309): pairs of whole episodes, again and again.

    repeat:  curriculum picks (task, initial state), G times the same
             -> act: every episode of every group is played to its end
             -> score: sparse success, plus the dense reward of each turn
             -> pair: the episodes of a group are ranked, better against worse; ties make no pair
             -> improve: the chosen episode of each pair becomes likelier than the rejected one, against the reference
             -> log: metrics, checkpoint, evaluation on every (task, initial state) once

What such a run opens, counts and saves: `group_practice`.   vla-rl train metaworld-mt5-tpo --policy.checkpoint FOLDER
"""

from __future__ import annotations

from pathlib import Path

from vla_rl.algorithms.tpo import preferences_of
from vla_rl.config import TrainConfig
from vla_rl.distributed import SingleProcess, World
from vla_rl.recipes.group_practice import group_practice


def train(config: TrainConfig, resume: Path | None = None, world: World = SingleProcess()) -> Path:
    """Improve `config.policy.checkpoint` by practice; returns the run folder. Arguments and ends as of `train_ppo`."""
    with group_practice(config, resume, world) as practice:
        while practice.goes_on():
            # 1. act: whole groups
            played = practice.play()

            # 2. score: the simulator's sparse success, plus a dense reward for each turn
            dense_rewards = practice.score(played)

            # 3. pair: better against worse, within each group
            preferences, metrics = preferences_of(played, dense_rewards, config.tpo)

            # 4. improve the policy
            metrics |= practice.learn(preferences)

            # 5. log, checkpoint, evaluate
            practice.log(played, dense_rewards, metrics)
        return practice.finish()
