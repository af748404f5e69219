"""The reward of a training run: success alone, or a judge beside it, which may learn from the run's own episodes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64

from vla_rl.config import TrainConfig, UserError
from vla_rl.envs.benchmark import no_dense_reward
from vla_rl.envs.env import VectorEnv
from vla_rl.envs.registry import is_libero
from vla_rl.policies import OpenVLAPolicy
from vla_rl.recipes.reward_evaluation import training_config
from vla_rl.recipes.reward_labels import play_and_keep, training_specs
from vla_rl.recipes.reward_model import train_reward
from vla_rl.rewards import JudgeScorer, RewardModel, ShapedReward, SimulatorScorer, SuccessReward
from vla_rl.rewards.judge import JUDGE_FILE, JudgeDescription, load_judge
from vla_rl.rewards.trajectories import TrajectoryWriter
from vla_rl.rollout import Collector
from vla_rl.runtime.run_folder import Run
from vla_rl.runtime.seeding import restore_torch_rng, torch_rng_state


def build_reward(config: TrainConfig, policy: OpenVLAPolicy) -> RewardModel:
    """What `config.reward` asks for. UserError if the judge was trained for other pictures or actions."""
    settings, horizon = config.reward, config.env.horizon
    if not settings.judge:
        return SuccessReward()
    if settings.asks_simulator:
        if is_libero(config.env.suite):
            raise no_dense_reward(config.env.suite)
        return ShapedReward(SimulatorScorer(), settings, gamma=config.ppo.gamma, horizon=horizon)
    judge = load_judge(settings.judge, config.policy.device)
    _require_fit(judge.description, config, policy)

    def decode_actions(tokens: Int64[np.ndarray, "B K"]) -> Float32[np.ndarray, "B C A"]:
        return policy.decode_actions(torch.from_numpy(tokens))

    scorer = JudgeScorer(judge, settings.judge, decode_actions)
    return ShapedReward(scorer, settings, gamma=config.ppo.gamma, horizon=horizon)


def _require_fit(judge: JudgeDescription, config: TrainConfig, policy: OpenVLAPolicy) -> None:
    folder = config.reward.judge
    if judge.history != 1:
        raise UserError(
            f"the judge in {folder} looks at {judge.history} pictures at a time; in training one is at hand: train a "
            "judge with history 1"
        )
    if judge.image_size not in (0, config.env.image_size):
        raise UserError(
            f"the judge in {folder} looks at {judge.image_size} px, the environment draws {config.env.image_size} px: "
            "train a judge on pictures of that size"
        )
    if not judge.sees_actions:
        return
    if config.reward.form != "additive":
        raise UserError(
            f"the judge in {folder} judges actions, and {config.reward.form} is a function of what is seen alone: set "
            "reward.form additive, or train a judge without actions"
        )
    if (judge.action_chunk, judge.action_size) != (policy.action_chunk, policy.action_dim):
        raise UserError(
            f"the judge in {folder} judges {judge.action_chunk} actions of size {judge.action_size}, the policy "
            f"decides {policy.action_chunk} of size {policy.action_dim}: train a judge on the policy's own episodes"
        )


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
