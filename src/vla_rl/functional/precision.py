"""The one rule about number formats: ratios, advantages and log-probabilities are never computed in bf16."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 if it came in a shorter or an integer format; float64 stays, for finite-difference checks."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
