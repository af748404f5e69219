"""Mean, variance and whitening over the entries a mask selects.

What the mask leaves out never matters, NaN included. An empty mask gives 0, with zero gradient: a mean over
nothing adds nothing to a loss, and no device has to be waited for to find out.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla_rl.functional.precision import at_least_float32

# Spread below this fraction of the largest value is rounding, not information.
_RELATIVE_SPREAD_FLOOR = 1e-6


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, ""]:
    """Mean of the selected entries; 0 where none is selected. Without a mask, of all."""
    x, mask = _selected(x, mask)
    return x.sum() / mask.sum().clamp(min=1)


def masked_var(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, ""]:
    """Population variance (divided by the count) of the selected entries; 0 for one entry or none."""
    x, mask = _selected(x, mask)
    return masked_mean((x - masked_mean(x, mask)).square(), mask)


def masked_whiten(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"] | None = None,
    floor: float = 0.0,
) -> Float[Tensor, "*shape"]:
    """Shift and scale the selected entries to mean 0 and standard deviation 1; the others become 0.

    Where the selected entries are all alike (one entry, or constant to rounding) the result is 0: there is
    nothing to tell them apart by. Give it the whole rollout, never a minibatch, or the same sample gets
    another advantage in another company.

    floor: Divide by this where the standard deviation is smaller, which then is that share of 1 afterwards: entries
        that hardly differ are not blown up.
    """
    x, mask = _selected(x, mask)
    centred = torch.where(mask, x - masked_mean(x, mask), torch.zeros_like(x))
    deviation = masked_var(x, mask).sqrt()
    largest = x.abs().amax() if x.numel() else deviation
    informative = deviation > _RELATIVE_SPREAD_FLOOR * largest
    scale = torch.where(
        informative,
        1.0 / torch.where(informative, deviation.clamp(min=floor), torch.ones_like(deviation)),
        torch.zeros_like(deviation),
    )
    return centred * scale


def _selected(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """`x` in at least float32 with zeros where it is not selected, and the mask."""
    x = at_least_float32(x)
    if mask is None:
        return x, torch.ones_like(x, dtype=torch.bool)
    return torch.where(mask, x, torch.zeros_like(x)), mask
