"""Refreshing the reward model of a training run on the run's own episodes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from vla_rl.config import TrainConfig
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.envs.env import VectorEnv
from vla_rl.policies.policy import Policy
from vla_rl.policies.shardable import playing
from vla_rl.rewards import RewardFunction, RewardModelScorer, ShapedReward
from vla_rl.rewards.process.loading import load_reward_model, reward_model_folder
from vla_rl.rewards.trajectory_files import TrajectoryWriter
from vla_rl.rollout import Collector
from vla_rl.runtime.run_folder import Run
from vla_rl.runtime.seeding import restore_torch_rng, torch_rng_state
from vla_rl.training.state import FollowedRun

REFRESHED = "reward_models"
"""Folder of a run in which its refreshed reward models lie, iteration by iteration."""
OLD_REFRESHED = "judges"
"""Its name before."""


def refresh_reward_model(
    iteration: int,
    run: Run | FollowedRun,
    policy: Policy,
    envs: VectorEnv,
    collector: Collector,
    reward_function: RewardFunction,
    config: TrainConfig,
    world: World = SingleProcess(),
) -> None:
    """Every `reward.refresh_every` iterations, before playing: teach the reward model what the policy does by now.

    The policy plays new episodes of the training split. The reward model goes on learning on them and on all it has
    learned from before; what has measured it so far goes on measuring it. Everything lies in
    <run>/reward_models/iteration-N, and a resumed run that finds it there takes it.
    """
    every = config.reward.refresh_every
    if every == 0 or iteration == 0 or iteration % every != 0:
        return
    if not isinstance(reward_function, ShapedReward):
        return
    scorer = reward_function.scorer
    if not isinstance(scorer, RewardModelScorer):
        return
    random = torch_rng_state()
    folders = [
        run.folder / place / f"iteration-{iteration:06d}" for place in (REFRESHED, OLD_REFRESHED)
    ]
    done = next((folder for folder in folders if _is_done(folder)), None)
    done = world.broadcast(done)
    if done is None:
        running, new = collector.state_dict(), folders[0]
        with playing(policy):
            if world.rank == 0:
                shutil.rmtree(
                    new, ignore_errors=True
                )  # of a run that was killed in the middle of it
                _play(new / "episodes", policy, envs, config, iteration)
        if world.rank == 0:
            done = new
            _teach(new / "model", new / "episodes", scorer, config, iteration)
            collector.load_state_dict(running)
    done = world.broadcast(done)  # rank 0 has played and taught meanwhile
    assert done is not None
    trained = done / "model"
    scorer.use(load_reward_model(trained, config.policy.device), str(trained))
    restore_torch_rng(random)


def _is_done(folder: Path) -> bool:
    """The reward model is written last, and whole."""
    return reward_model_folder(folder / "model") != folder / "model"


def _play(out: Path, policy: Policy, envs: VectorEnv, config: TrainConfig, iteration: int) -> None:
    # training without a reward model needs no library for datasets
    from vla_rl.recipes.label_trajectories import play_and_keep, training_specs

    seed = (config.run.seed + 7919 * iteration) % 2**63  # other initial states each time
    specs = training_specs(config.env, config.reward.refresh_episodes, seed)
    with TrajectoryWriter(str(out)) as writer:
        play_and_keep(
            policy, envs, config.env, specs, writer.add,
            temperature=config.rollout.temperature, seed=seed,
        )  # fmt: skip


def _teach(
    out: Path, episodes: Path, scorer: RewardModelScorer, config: TrainConfig, iteration: int
) -> None:
    from vla_rl.recipes.evaluate_reward import training_config
    from vla_rl.recipes.train_reward import train_reward

    reward_model = load_reward_model(scorer.folder, config.policy.device)
    learned = training_config(scorer.folder, reward_model)
    train_reward(
        replace(
            learned,
            datasets=(*learned.datasets, str(episodes.resolve())),
            start=scorer.folder,
            out=str(out),
            epochs=config.reward.refresh_epochs,
            seed=(config.run.seed + iteration) % 2**63,
        )
    )
