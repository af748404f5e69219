"""Rollout windows whose images say how good they look, and scorers whose answers are known."""

from __future__ import annotations

import numpy as np

from builders.rollouts import window as zeros
from vla_rl.config import ProcessRewardConfig
from vla_rl.rewards import RewardModelScorer, ShapedReward
from vla_rl.rewards.process.model import RewardModelDescription
from vla_rl.types import Rollout


class BrightnessRewardModel:
    """Known answers: the log-odds of an image is its first pixel's red value minus 100."""

    sees_actions = False
    description = RewardModelDescription("known", "{instruction}?", "1", "0", 0)
    calls = 0

    def log_odds(self, images, instructions, actions=None):
        assert len(images) == len(instructions)
        self.calls += 1
        return images[:, 0, 0, 0].astype(np.float32) - 100


def window(brightness: np.ndarray, following: list[int], **arrays: np.ndarray) -> Rollout:
    """A window in which the red value of each turn's image is given, (M, N)."""
    m, n = brightness.shape
    images = np.zeros((m, n, 2, 2, 3), np.uint8)
    images[:, :, 0, 0, 0] = brightness
    after = np.zeros((n, 2, 2, 3), np.uint8)
    after[:, 0, 0, 0] = following
    return zeros(m, n, images=images, next_images=after, **arrays)


def reward(
    reward_model=None,
    horizon: int = 4,
    gamma: float = 0.5,
    form="potential",
    terminal=True,
    **config,
) -> ShapedReward:
    def never(tokens):
        raise AssertionError("this reward model sees no actions")

    return ShapedReward(
        RewardModelScorer(reward_model or BrightnessRewardModel(), "folder", never),
        ProcessRewardConfig(model="folder", form=form, **config),
        gamma=gamma,
        horizon=horizon,
        time_limit_is_terminal=terminal,
    )


def flags(*rows: list[int]) -> np.ndarray:
    return np.array(rows, bool)


LOW, HALF, HIGH = 0, 100, 200  # probabilities 0, 1/2 and 1


class Scores:
    """A scorer whose scores are given; from `changed_from` on it is another one."""

    def __init__(self, before: np.ndarray, after: np.ndarray, changed_from: int) -> None:
        self.before, self.after, self.changed_from = before, after, changed_from
        self.at = slice(0, 0)

    def window(
        self, start: int, stop: int, terminated: np.ndarray, truncated: np.ndarray
    ) -> Rollout:
        self.at = slice(start, stop)
        return window(
            np.zeros((stop - start, terminated.shape[1])),
            [0] * terminated.shape[1],
            terminated=terminated[start:stop],
            truncated=truncated[start:stop],
        )

    @property
    def scorer(self) -> np.ndarray:
        return self.before if self.at.start < self.changed_from else self.after

    def scores(self, rollout: Rollout) -> np.ndarray:
        return self.scorer[self.at]

    def following(self, rollout: Rollout) -> np.ndarray:
        return self.scorer[min(self.at.stop, 249)]

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass
