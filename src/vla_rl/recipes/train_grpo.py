"""GRPO for a vision-language-action policy: PPO's objective without a critic, on groups of whole episodes.

    repeat:  curriculum picks (task, initial state), G times the same
             -> act: every episode of every group is played to its end; groups that all succeeded or all failed are
                replaced while `grpo.extra_groups` lasts
             -> score: sparse success, plus the dense reward of each turn
             -> advantages: an episode's return against those of its group, the same for all of its turns
             -> improve: the clipped objective on action tokens
             -> log: metrics, checkpoint, evaluation on every (task, initial state) once

What such a run opens, counts and saves: `group_practice`.   vla-rl train metaworld-mt5-grpo --policy.checkpoint FOLDER
"""

from __future__ import annotations

from pathlib import Path

from vla_rl.algorithms.grpo import group_batch
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

            # 3. advantages: each episode against its group
            batch, metrics = group_batch(played, dense_rewards, config.grpo)

            # 4. improve the policy
            metrics |= practice.learn(batch)

            # 5. log, checkpoint, evaluate
            practice.log(played, dense_rewards, metrics)
        return practice.finish()
