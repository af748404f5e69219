"""How much a window of play says about what succeeds.

Where one episode in a hundred succeeds, advantages are the critic's errors and little else; normalised, they move a
policy as far as advantages that mean something. What is counted here lets an update tell the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vla_rl.types import Rollout

ROUNDING = 1e-6
"""A potential's rewards add up to 0 over an episode, but for rounding."""


@dataclass(frozen=True)
class Signal:
    """By task, in the order of `Rollout.tasks`: how the episodes ended that ended in a window, and what is in sight."""

    won: Int64[np.ndarray, " T"]
    lost: Int64[np.ndarray, " T"]
    played: Bool[np.ndarray, " T"]
    in_sight: Bool[np.ndarray, " T"]
    """An episode succeeded in the window, or its rewards there add up to more than 0."""

    @property
    def outcomes(self) -> float:
        """Effective number of outcomes that can be compared: won * lost / (won + lost) of each task, summed.

        The variance of a difference between two means is in proportion to 1 / won + 1 / lost. Of n episodes of which a
        share s succeeded it is n s (1 - s): 0 where all failed, or all succeeded.
        """
        return float((self.won * self.lost / np.maximum(1, self.won + self.lost)).sum())

    @property
    def is_dark(self) -> bool:
        """Whether no task has a success in sight."""
        return not self.in_sight.any()

    def metrics(self) -> dict[str, float]:
        """`losses/outcomes`, and the share of the tasks played that have a success in sight."""
        seen, played = int(self.in_sight.sum()), int(self.played.sum())
        return {
            "losses/outcomes": self.outcomes,
            "losses/tasks_in_sight": seen / max(1, played),
        }


def signal_of(rollout: Rollout, dense_rewards: Float32[np.ndarray, "M N"]) -> Signal:
    """What a window says of each task; turns without an outcome count for nothing."""
    count = len(rollout.tasks)

    def of_tasks(turns: Bool[np.ndarray, "M N"]) -> Int64[np.ndarray, " T"]:
        return np.bincount(rollout.task_ids[turns & rollout.valid], minlength=count)

    won, played = of_tasks(rollout.terminated), of_tasks(rollout.valid)
    _, first, episode = np.unique(
        rollout.episode_ids[rollout.valid], return_index=True, return_inverse=True
    )
    rewards = (rollout.rewards + dense_rewards)[rollout.valid].astype(np.float64)
    returns = np.bincount(episode, rewards, len(first))
    paid = rollout.task_ids[rollout.valid][first][returns > ROUNDING]
    in_sight = (won > 0) | (np.bincount(paid, minlength=count) > 0)
    return Signal(won, of_tasks(rollout.truncated), played > 0, in_sight)
