"""A process reward model in the loop: its probability of the positive answer is the score of a turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from vla_rl.config import TrainConfig, UserError
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.policies.policy import Policy
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.model import (
    PastSteps,
    ProcessRewardModel,
    RewardModelDescription,
    probability,
)
from vla_rl.rewards.shaping import ShapedReward, shaped
from vla_rl.rewards.step_history import StepHistory
from vla_rl.types import Rollout

DecodeActions = Callable[[Int64[np.ndarray, "B K"]], Float32[np.ndarray, "B C A"]]


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

        `decode_actions` turns tokens into the actions that a reward model with `sees_actions` looks at.
        """
        self.reward_model = reward_model
        self.folder = folder
        """Where the reward model in use came from: a refreshed one replaces the configured one."""
        self._decode_actions, self._world = decode_actions, world
        images = reward_model.description.history
        self._history = StepHistory(images) if images > 1 else None
        self._next: tuple[UInt8[np.ndarray, "L F H W 3"], PastSteps] | None = None
        """With a history: what follows the last window."""

    def use(self, reward_model: ProcessRewardModel, folder: str) -> None:
        """Ask this reward model from now on."""
        self.reward_model, self.folder = reward_model, folder

    def scores(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        flat = rollout.flat_observation()
        tokens = rollout.tokens[:, rollout.own].reshape(len(flat), -1)
        reads = self.reward_model.description.reads_actions
        actions = self._decode_actions(tokens) if reads else None
        odds = self._odds(rollout, flat.images, flat.instructions, actions)
        own = probability(odds).reshape(len(rollout.rewards), -1)
        return np.concatenate(self._world.gather(own), axis=1)

    def _odds(
        self,
        rollout: Rollout,
        images: UInt8[np.ndarray, "B H W 3"],
        instructions: tuple[str, ...],
        actions: Float32[np.ndarray, "B C A"] | None,
    ) -> Float32[np.ndarray, " B"]:
        model = self.reward_model
        if self._history is None:
            return model.log_odds(images, instructions, actions)
        turns, envs = rollout.images.shape[:2]
        shape = (0, 0) if actions is None else actions.shape[1:]
        taken = np.zeros((turns, envs, 0, 0), np.float32) if actions is None else actions
        moments = self._history.follow(rollout, taken.reshape(turns, envs, *shape))
        self._next = moments.part(slice(turns, None))
        seen, past = moments.part(slice(0, turns))
        if model.description.reads_past:
            return model.log_odds(seen, instructions, None, past)
        return model.log_odds(seen, instructions, actions)

    def following(self, rollout: Rollout) -> Float32[np.ndarray, " N"]:
        tasks = rollout.task_ids[-1, rollout.own].tolist()
        words = tuple(rollout.instructions[i] for i in tasks)
        model, images = self.reward_model, rollout.next_images
        if self._next is not None:
            images, past = self._next
            if model.description.reads_past:
                odds = model.log_odds(images, words, None, past)
                return np.concatenate(self._world.gather(probability(odds)))
        own = probability(model.log_odds(images, words, None))
        return np.concatenate(self._world.gather(own))

    def state_dict(self) -> dict[str, Any]:
        """The reward model itself lies in its folder. With a history also the last steps; all ranks call it."""
        state: dict[str, Any] = {"reward_model": self.folder}
        if self._history is not None:
            state["history"] = self._history.state_dict(self._world)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Also reads states in which the reward model was called `judge`."""
        folder = state["reward_model"] if "reward_model" in state else state["judge"]
        if folder != self.folder:
            self.use(load_reward_model(folder), folder)
        if self._history is not None:
            self._history.load_state_dict(state.get("history"))


def process_reward(config: TrainConfig, policy: Policy, world: World) -> ShapedReward:
    """`reward.kind process`. UserError if the reward model was trained for other images or actions."""
    folder = config.reward.model
    reward_model = load_reward_model(folder, config.policy.device)
    _require_fit(reward_model.description, config, policy)

    def decode_actions(tokens: Int64[np.ndarray, "B K"]) -> Float32[np.ndarray, "B C A"]:
        return policy.decode_actions(torch.from_numpy(tokens))

    return shaped(RewardModelScorer(reward_model, folder, decode_actions, world), config)


def _require_fit(reward_model: RewardModelDescription, config: TrainConfig, policy: Policy) -> None:
    source = f"the reward model in {config.reward.model}"
    if reward_model.image_size not in (0, config.env.image_size):
        raise UserError(
            f"{source} looks at {reward_model.image_size} px, the environment draws {config.env.image_size} px: train "
            "a reward model on images of that size"
        )
    if not reward_model.reads_actions:
        return
    if reward_model.sees_actions and config.reward.form != "additive":
        raise UserError(
            f"{source} scores actions, and reward.form {config.reward.form} is a function of what is seen alone: set "
            "reward.form additive, or train a reward model without actions"
        )
    wanted = policy.action_chunk, policy.action_dim
    if (reward_model.action_chunk, reward_model.action_size) != wanted:
        raise UserError(
            f"{source} reads {reward_model.action_chunk} actions of size {reward_model.action_size}, the policy "
            f"decides {wanted[0]} of size {wanted[1]}: train a reward model on the policy's own episodes"
        )
