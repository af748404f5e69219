"""Refreshing the reward model of a training run on the run's own episodes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from vla_rl.config import TrainConfig
from vla_rl.envs.env import VectorEnv
from vla_rl.policies.policy import Policy
from vla_rl.rewards import RewardFunction, RewardModelScorer, ShapedReward
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.model import REWARD_MODEL_FILE
from vla_rl.rewards.trajectory_files import TrajectoryWriter
from vla_rl.rollout import Collector
from vla_rl.runtime.run_folder import Run
from vla_rl.runtime.seeding import restore_torch_rng, torch_rng_state


def refresh_reward_model(
    iteration: int,
    run: Run,
    policy: Policy,
    envs: VectorEnv,
    collector: Collector,
    reward_function: RewardFunction,
    config: TrainConfig,
) -> None:
    """Every `reward.refresh_every` iterations, before playing: teach the reward model what the policy does by now.

    The policy plays new episodes of the training split; the reward model goes on learning on them and on all it has
    learned
    from before. Everything lies in <run>/judges/iteration-N, and a resumed run that finds it there takes it.
    """
    every = config.reward.refresh_every
    if every == 0 or iteration == 0 or iteration % every != 0:
        return
    if not isinstance(reward_function, ShapedReward):
        return
    scorer = reward_function.scorer
    if not isinstance(scorer, RewardModelScorer):
        return
    folder = run.folder / "scores" / f"iteration-{iteration:06d}"
    trained = folder / "model"
    random = torch_rng_state()
    if not (trained / "judge" / REWARD_MODEL_FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed in the middle of it
        running = collector.state_dict()
        _play(folder / "episodes", policy, envs, config, iteration)
        _teach(trained, folder / "episodes", scorer, config, iteration)
        collector.load_state_dict(running)
    scorer.use(load_reward_model(trained, config.policy.device), str(trained))
    restore_torch_rng(random)


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
