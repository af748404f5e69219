"""The reward of a training run: success alone, or a judge beside it, which may learn from the run's own episodes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from vla_rl.config import TrainConfig
from vla_rl.envs.env import VectorEnv
from vla_rl.policies import OpenVLAPolicy
from vla_rl.recipes.evaluate_reward import training_config
from vla_rl.recipes.label_trajectories import play_and_keep, training_specs
from vla_rl.recipes.train_reward import train_reward
from vla_rl.rewards import JudgeScorer, RewardModel, ShapedReward
from vla_rl.rewards.process.loading import load_judge
from vla_rl.rewards.process.model import JUDGE_FILE
from vla_rl.rewards.trajectory_files import TrajectoryWriter
from vla_rl.rollout import Collector
from vla_rl.runtime.run_folder import Run
from vla_rl.runtime.seeding import restore_torch_rng, torch_rng_state


def refresh_judge(
    iteration: int,
    run: Run,
    policy: OpenVLAPolicy,
    envs: VectorEnv,
    collector: Collector,
    reward_model: RewardModel,
    config: TrainConfig,
) -> None:
    """Every `reward.refresh_every` iterations, before playing: teach the judge what the policy does by now.

    The policy plays new episodes of the training split; the judge goes on learning on them and on all it has learned
    from before. Everything lies in <run>/judges/iteration-N, and a resumed run that finds it there takes it.
    """
    every = config.reward.refresh_every
    if every == 0 or iteration == 0 or iteration % every != 0:
        return
    if not isinstance(reward_model, ShapedReward):
        return
    scorer = reward_model.scorer
    if not isinstance(scorer, JudgeScorer):
        return
    folder = run.folder / "judges" / f"iteration-{iteration:06d}"
    trained = folder / "model"
    random = torch_rng_state()
    if not (trained / "judge" / JUDGE_FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed in the middle of it
        running = collector.state_dict()
        _play(folder / "episodes", policy, envs, config, iteration)
        _teach(trained, folder / "episodes", scorer, config, iteration)
        collector.load_state_dict(running)
    scorer.use(load_judge(trained, config.policy.device), str(trained))
    restore_torch_rng(random)


def _play(
    out: Path, policy: OpenVLAPolicy, envs: VectorEnv, config: TrainConfig, iteration: int
) -> None:
    seed = config.run.seed + 7919 * iteration  # other initial states each time
    specs = training_specs(config.env, config.reward.refresh_episodes, seed)
    with TrajectoryWriter(str(out)) as writer:
        play_and_keep(
            policy, envs, config.env, specs, writer.add,
            temperature=config.ppo.temperature, seed=seed,
        )  # fmt: skip


def _teach(
    out: Path, episodes: Path, scorer: JudgeScorer, config: TrainConfig, iteration: int
) -> None:
    judge = load_judge(scorer.folder, config.policy.device)
    learned = training_config(scorer.folder, judge)
    train_reward(
        replace(
            learned,
            datasets=(*learned.datasets, str(episodes.resolve())),
            start=scorer.folder,
            out=str(out),
            epochs=config.reward.refresh_epochs,
            seed=config.run.seed + iteration,
        )
    )
