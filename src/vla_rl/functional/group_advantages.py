"""Advantages without a critic: an episode against the others of its group, all from one initial state.

    normalized      A_i = (R_i - mean R) / (std R + eps)     GRPO, Shao et al. 2024 (arXiv:2402.03300, eq. 4)
    centered        A_i =  R_i - mean R                      Dr. GRPO, Liu et al. 2025 (arXiv:2503.20783, eq. 6)
    leave-one-out   A_i =  R_i - mean of the others          RLOO, Kool et al. 2019; Ahmadian et al. 2024
                                                             (arXiv:2402.14740)

The baseline of `leave-one-out` does not depend on the episode it is taken from, so that (1/G) sum_i A_i grad log pi_i
is an unbiased estimate of the gradient of the mean return. `centered` is (G - 1) / G of it. `normalized` also gives
groups that are nearly always solved, or nearly never, as large a step as the others.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor

from vla_rl.functional.precision import at_least_float32

GroupAdvantage = Literal["normalized", "centered", "leave-one-out"]


def group_advantages(
    returns: Float[Tensor, " E"],
    groups: Int64[Tensor, " E"],
    kind: GroupAdvantage = "normalized",
    eps: float = 1e-6,
) -> Float[Tensor, " E"]:
    """One advantage for each of E episodes.

    Args:
        returns: What each episode was worth.
        groups: Which group it belongs to; any numbers.
        kind: See above. The deviation is that of a sample, divided by G - 1, as the published code has it.
        eps: Added to the deviation.

    Raises:
        ValueError: A group has one episode, which cannot be compared with anything.
    """
    returns = at_least_float32(returns)
    together = (groups[:, None] == groups[None]).to(returns.dtype)
    sizes = together.sum(1)
    if len(sizes) and sizes.min() < 2:
        raise ValueError("a group needs at least two episodes to compare, one has a single one")
    centered = returns - together @ returns / sizes
    if kind == "centered":
        return centered
    if kind == "leave-one-out":
        return centered * sizes / (sizes - 1)
    if kind == "normalized":
        deviations = (together @ centered.square() / (sizes - 1)).sqrt()
        return centered / (deviations + eps)
    raise ValueError(f"kind must be 'normalized', 'centered' or 'leave-one-out', got {kind!r}")
