"""Losses for the critic, and how much of the returns it explains.

All losses are means over the selected entries (over none: 0), with gradient into `values` alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla_rl.functional.masking import masked_mean, masked_var
from vla_rl.functional.precision import at_least_float32

ErrorKind = Literal["mse", "huber"]


def squared_value_loss(
    values: Float[Tensor, "*batch"],
    returns: Float[Tensor, "*batch"],
    mask: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean of (V - G)^2 / 2. The half makes it agree with Huber's loss for small errors."""
    return masked_mean(_half_squared(values, returns), mask)


def huber_value_loss(
    values: Float[Tensor, "*batch"],
    returns: Float[Tensor, "*batch"],
    delta: float = 1.0,
    mask: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean of e^2 / 2 where |e| <= delta, delta (|e| - delta / 2) beyond, e = V - G (Huber 1964)."""
    return masked_mean(_huber(values, returns, delta), mask)


def clipped_value_loss(
    values: Float[Tensor, "*batch"],
    returns: Float[Tensor, "*batch"],
    old_values: Float[Tensor, "*batch"],
    clip_range: float,
    mask: Bool[Tensor, "*batch"] | None = None,
    *,
    kind: ErrorKind = "mse",
    delta: float = 1.0,
) -> Float[Tensor, ""]:
    """Value loss clipped about the values at rollout time, as in PPO's original code.

        V_clip = V_old + clamp(V - V_old, -clip_range, clip_range)
        loss   = mean max(error(V, G), error(V_clip, G))

    The larger error counts: a value that has moved further than the range towards its return gets no more
    gradient, one that has moved away from it still does.

    Args:
        values: V, with gradient.
        returns: The targets G.
        old_values: V when the turns were played.
        clip_range: How far V may move, in units of the return; positive.
        mask: Entries that count.
        kind: `mse` (halved) or `huber`.
        delta: Where Huber's error turns linear.
    """
    if not clip_range > 0:
        raise ValueError(f"clip_range must be positive, got {clip_range}")
    if kind not in ("mse", "huber"):
        raise ValueError(f"kind must be 'mse' or 'huber', got {kind!r}")
    values, old = at_least_float32(values), at_least_float32(old_values).detach()
    near = old + (values - old).clamp(-clip_range, clip_range)
    if kind == "huber":
        errors = torch.maximum(_huber(values, returns, delta), _huber(near, returns, delta))
    else:
        errors = torch.maximum(_half_squared(values, returns), _half_squared(near, returns))
    return masked_mean(errors, mask)


def explained_variance(
    *,
    values: Float[Tensor, "*batch"],
    returns: Float[Tensor, "*batch"],
    mask: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    """1 - Var[G - V] / Var[G]: 1 is perfect, 0 no better than a constant, negative is worse than one.

    Constant returns have nothing to explain: the result is 0 whatever the values are, so that a critic is
    never taken for good because every episode failed. A constant offset of the values is not noticed.
    Keywords only: swapped arguments would give another number without a word.
    """
    values, returns = at_least_float32(values), at_least_float32(returns)
    target = masked_var(returns, mask)
    # the mean of n equal floats can be off by rounding, so ask for spread relative to size
    chosen = returns if mask is None else torch.where(mask, returns, torch.zeros_like(returns))
    floor = (1e-6 * chosen.abs().amax()).square() if chosen.numel() else target
    informative = target > floor
    ratio = masked_var(returns - values, mask) / torch.where(
        informative, target, torch.ones_like(target)
    )
    return torch.where(informative, 1.0 - ratio, torch.zeros_like(ratio))


def _half_squared(values: Tensor, returns: Tensor) -> Tensor:
    return 0.5 * (at_least_float32(values) - at_least_float32(returns).detach()).square()


def _huber(values: Tensor, returns: Tensor, delta: float) -> Tensor:
    size = (at_least_float32(values) - at_least_float32(returns).detach()).abs()
    return torch.where(size <= delta, 0.5 * size.square(), delta * (size - 0.5 * delta))
