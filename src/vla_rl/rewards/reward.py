"""The interface of rewards: dense rewards beside the simulator's success."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32

from vla_rl.types import Rollout

SUCCESS_REWARD = 1.0
"""What the simulator pays for a success, once, on the turn that reaches it."""


class RewardFunction(Protocol):
    """Dense rewards for the turns of a window."""

    @property
    def in_return(self) -> bool:
        """Whether they are part of the return that the critic learns; else they go into the advantages alone."""
        ...

    def score(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        """Dense reward of each turn, to be added to `rollout.rewards`, which it does not contain.

        It must not make a failure worth more than a success, nor a delay worth more than finishing.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """What is worth logging of the last window."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the next window's rewards depend on: numbers, texts and arrays. Every process of a run calls it."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
