"""Builds the reward function that a configuration asks for."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Int64

from vla_rl.config import TrainConfig, UserError
from vla_rl.envs.benchmark import no_dense_reward
from vla_rl.envs.registry import is_libero
from vla_rl.policies import OpenVLAPolicy
from vla_rl.rewards import JudgeScorer, RewardModel, ShapedReward, SimulatorScorer, SuccessReward
from vla_rl.rewards.process.loading import load_judge
from vla_rl.rewards.process.model import JudgeDescription


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
