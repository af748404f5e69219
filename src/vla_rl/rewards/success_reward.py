"""Success is the only reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla_rl.config import TrainConfig
from vla_rl.distributed.world import World
from vla_rl.policies.policy import Policy
from vla_rl.types import Rollout


class SuccessReward:
    """No dense reward: it is zero everywhere."""

    in_return = True

    def score(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        """Zeros."""
        return np.zeros(rollout.rewards.shape, dtype=np.float32)

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def success_reward(config: TrainConfig, policy: Policy, world: World) -> SuccessReward:
    """`reward.kind success`."""
    return SuccessReward()
