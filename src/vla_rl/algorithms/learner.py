"""What a training run asks of an algorithm, and the error that ends it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from vla_rl.config import UserError


class TrainingDivergedError(UserError):
    """A loss, a gradient or a weight is not finite, or sampler and learner disagree. Nothing of it may be saved."""


Learned = TypeVar("Learned", contravariant=True)
"""What a learner learns from."""


class Learner(Protocol[Learned]):
    """Improves a policy from what was played, a `Batch` of turns for example, and can be saved."""

    def update(self, batch: Learned, iteration: int, progress: float) -> dict[str, float]:
        """Improve the policy from one batch; returns the metrics of this update.

        iteration: Number of the window, from 0; all randomness is keyed by it.
        progress: Share of the run that is done, in [0, 1]; drives the decay of learning rates.

        Raises TrainingDivergedError where a number is not finite; what was last saved is then the last good state.
        """
        ...

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimizers by the names under which a checkpoint holds them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All else that the next update depends on, as JSON values and arrays."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


def require_finite_step(loss: float, norm: Tensor, what: str) -> None:
    """Before a step: raise TrainingDivergedError unless the loss and the norm of its gradient are finite."""
    if not (math.isfinite(loss) and math.isfinite(norm.item())):
        raise TrainingDivergedError(
            f"the {what} loss ({loss:g}) or its gradient norm ({norm.item():g}) is not finite; the step was not "
            "taken. Lower the learning rate, or look at the rewards and observations of the last rollout"
        )


def require_finite_weights(are_finite: bool, what: str, rate: float) -> None:
    """After a step: raise TrainingDivergedError unless every weight is finite."""
    if not are_finite:
        raise TrainingDivergedError(
            f"the {what}'s weights are not finite after a step with learning rate {rate:g}: lower the learning rate"
        )


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
