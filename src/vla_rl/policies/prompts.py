"""Tokenised prompts of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Tokenised prompts, padded on the right. `lengths` stays on the host: shapes depend on it."""

    ids: Int64[Tensor, "N L"]
    lengths: Int64[np.ndarray, " N"]
    row_by_row: bool = False
    """Address columns row by row even where all lengths are equal, so that only the shape of `ids` matters."""

    @property
    def equal_length(self) -> bool:
        return not self.row_by_row and bool((self.lengths == self.lengths[0]).all())
