"""Builds the reward function that a configuration asks for."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Int64

from vla_rl.config import TrainConfig, UserError
from vla_rl.envs.benchmark import no_dense_reward
from vla_rl.envs.registry import is_libero
from vla_rl.policies.policy import Policy
from vla_rl.rewards import (
    RewardFunction,
    RewardModelScorer,
    ShapedReward,
    SimulatorScorer,
    SuccessReward,
)
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.model import RewardModelDescription


def build_reward(config: TrainConfig, policy: Policy) -> RewardFunction:
    """What `config.reward` asks for. UserError if the reward model was trained for other images or actions."""
    settings, horizon = config.reward, config.env.horizon
    if not settings.model:
        return SuccessReward()
    if settings.asks_simulator:
        if is_libero(config.env.suite):
            raise no_dense_reward(config.env.suite)
        return ShapedReward(SimulatorScorer(), settings, gamma=config.ppo.gamma, horizon=horizon)
    reward_model = load_reward_model(settings.model, config.policy.device)
    _require_fit(reward_model.description, config, policy)

    def decode_actions(tokens: Int64[np.ndarray, "B K"]) -> Float32[np.ndarray, "B C A"]:
        return policy.decode_actions(torch.from_numpy(tokens))

    scorer = RewardModelScorer(reward_model, settings.model, decode_actions)
    return ShapedReward(scorer, settings, gamma=config.ppo.gamma, horizon=horizon)


def _require_fit(reward_model: RewardModelDescription, config: TrainConfig, policy: Policy) -> None:
    folder = config.reward.model
    if reward_model.history != 1:
        raise UserError(
            f"the reward model in {folder} looks at {reward_model.history} images at a time; in training one is at "
            f"hand: train a "
            "reward model with history 1"
        )
    if reward_model.image_size not in (0, config.env.image_size):
        raise UserError(
            f"the reward model in {folder} looks at {reward_model.image_size} px, the environment draws "
            f"{config.env.image_size} px: "
            "train a reward model on images of that size"
        )
    if not reward_model.sees_actions:
        return
    if config.reward.form != "additive":
        raise UserError(
            f"the reward model in {folder} scores actions, and {config.reward.form} is a function of what is seen "
            f"alone: set "
            "reward.form additive, or train a reward model without actions"
        )
    if (reward_model.action_chunk, reward_model.action_size) != (
        policy.action_chunk,
        policy.action_dim,
    ):
        raise UserError(
            f"the reward model in {folder} scores {reward_model.action_chunk} actions of size "
            f"{reward_model.action_size}, the policy "
            f"decides {policy.action_chunk} of size {policy.action_dim}: train a reward model on the policy's own "
            f"episodes"
        )
