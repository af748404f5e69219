"""A process reward model in the loop: its probability of the positive answer is the score of a turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from vla_rl.config import TrainConfig, UserError
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.policies.policy import Policy, decoded
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.model import ProcessRewardModel, RewardModelDescription, probability
from vla_rl.rewards.shaping import ShapedReward, shaped
from vla_rl.types import Rollout

DecodeActions = Callable[[Int64[np.ndarray, "B K"], Sequence[str]], Float32[np.ndarray, "B C A"]]


class RewardModelScorer:
    """A process reward model, asked in one batched call for each window."""

    def __init__(
        self,
        reward_model: ProcessRewardModel,
        folder: str,
        decode_actions: DecodeActions,
        world: World = SingleProcess(),
    ) -> None:
        """`world`: its processes score the turns whose images they have, and all get all scores.

        `decode_actions` turns tokens, and what they answer, into the actions that a reward model with `sees_actions`
        looks at.
        """
        self.reward_model = reward_model
        self.folder = folder
        """Where the reward model in use came from: a refreshed one replaces the configured one."""
        self._decode_actions, self._world = decode_actions, world

    def use(self, reward_model: ProcessRewardModel, folder: str) -> None:
        """Ask this reward model from now on."""
        self.reward_model, self.folder = reward_model, folder

    def scores(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        flat = rollout.flat_observation()
        tokens = rollout.tokens[:, rollout.own].reshape(len(flat), -1)
        actions = None
        if self.reward_model.sees_actions:
            actions = self._decode_actions(tokens, flat.instructions)
        odds = self.reward_model.log_odds(flat.images, flat.instructions, actions)
        own = probability(odds).reshape(len(rollout.rewards), -1)
        return np.concatenate(self._world.gather(own), axis=1)

    def following(self, rollout: Rollout) -> Float32[np.ndarray, " N"]:
        tasks = rollout.task_ids[-1, rollout.own].tolist()
        words = tuple(rollout.instructions[i] for i in tasks)
        own = probability(self.reward_model.log_odds(rollout.next_images, words, None))
        return np.concatenate(self._world.gather(own))

    def state_dict(self) -> dict[str, Any]:
        """The reward model itself lies in its folder."""
        return {"reward_model": self.folder}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Also reads states in which the reward model was called `judge`."""
        folder = state["reward_model"] if "reward_model" in state else state["judge"]
        if folder != self.folder:
            self.use(load_reward_model(folder), folder)


def process_reward(config: TrainConfig, policy: Policy, world: World) -> ShapedReward:
    """`reward.kind process`. UserError if the reward model was trained for other images or actions."""
    folder = config.reward.model
    reward_model = load_reward_model(folder, config.policy.device)
    _require_fit(reward_model.description, config, policy)

    def decode_actions(
        tokens: Int64[np.ndarray, "B K"], instructions: Sequence[str]
    ) -> Float32[np.ndarray, "B C A"]:
        return decoded(policy, torch.from_numpy(tokens), instructions)

    return shaped(RewardModelScorer(reward_model, folder, decode_actions, world), config)


def _require_fit(reward_model: RewardModelDescription, config: TrainConfig, policy: Policy) -> None:
    source = f"the reward model in {config.reward.model}"
    if reward_model.history != 1:
        raise UserError(
            f"{source} looks at {reward_model.history} images at a time, and training has one at hand: train a reward "
            "model with history 1"
        )
    if reward_model.image_size not in (0, config.env.image_size):
        raise UserError(
            f"{source} looks at {reward_model.image_size} px, the environment draws {config.env.image_size} px: train "
            "a reward model on images of that size"
        )
    if not reward_model.sees_actions:
        return
    if config.reward.form != "additive":
        raise UserError(
            f"{source} scores actions, and reward.form {config.reward.form} is a function of what is seen alone: set "
            "reward.form additive, or train a reward model without actions"
        )
    wanted = policy.action_chunk, policy.action_dim
    if (reward_model.action_chunk, reward_model.action_size) != wanted:
        raise UserError(
            f"{source} scores {reward_model.action_chunk} actions of size {reward_model.action_size}, the policy "
            f"decides {wanted[0]} of size {wanted[1]}: train a reward model on the policy's own episodes"
        )
