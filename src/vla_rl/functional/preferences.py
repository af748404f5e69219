"""Learning from pairs of whole trajectories: which of two is better, and the loss that says so.

A trajectory's log-ratio is l = sum_t log pi(a_t | o_t) - log pi_ref(a_t | o_t), over all of its turns and tokens. Of a
pair (chosen c, rejected r) from one initial state the loss is

    L = -log sigmoid(beta (l_c - l_r))

Trajectory-wise preference optimisation, GRAPE (Zhang et al. 2024, arXiv:2411.19309, eq. 5 and 6); the form is that of
direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from vla_rl.functional.precision import at_least_float32

_SAME = 1e-9
"""Scores that differ by less are a tie."""


class Pairs(NamedTuple):
    """Which episodes are compared, by their numbers among those given."""

    chosen: Int64[np.ndarray, " P"]
    rejected: Int64[np.ndarray, " P"]
    ties: int
    """Pairs of episodes of one group whose scores are equal, none of which is compared."""


def preference_pairs(
    scores: Float64[np.ndarray, " E"], groups: Int64[np.ndarray, " E"], most: int
) -> Pairs:
    """At most `most` pairs of each group, the better episode of each being the chosen one.

    Every episode takes part as evenly as can be, then the largest difference comes first; a tie makes no pair. So with
    seven successes and a failure, four pairs compare the failure with four different successes.
    """
    chosen: list[int] = []
    rejected: list[int] = []
    ties = 0
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        gaps = scores[members][:, None] - scores[members][None]
        ties += int(np.triu(np.abs(gaps) <= _SAME, 1).sum())
        better, worse = np.nonzero(gaps > _SAME)
        used = np.zeros(len(members), np.int64)
        free = np.ones(len(better), bool)
        for _ in range(min(most, len(better))):
            load = used[better] + used[worse]
            # sorted by the last key first: evenly, then by the difference, then by number
            order = np.lexsort((worse, better, -gaps[better, worse], load, ~free))
            best = order[0]
            free[best] = False
            used[[better[best], worse[best]]] += 1
            chosen.append(int(members[better[best]]))
            rejected.append(int(members[worse[best]]))
    return Pairs(np.array(chosen, np.int64), np.array(rejected, np.int64), ties)


def preference_loss(
    chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], beta: float
) -> Float[Tensor, ""]:
    """Mean of -log sigmoid(beta (chosen - rejected)) over pairs of log-ratios."""
    margins = at_least_float32(chosen) - at_least_float32(rejected)
    return -torch.nn.functional.logsigmoid(beta * margins).mean()


def preference_slopes(margins: Float[Tensor, " P"], beta: float) -> Float[Tensor, " P"]:
    """Derivative of each pair's loss by its margin l_c - l_r: -beta sigmoid(-beta margin).

    The gradient of a pair's loss is this number times the gradient of its margin, which is a sum over turns. So the
    turns may go through the policy in any number of passes.
    """
    return -beta * torch.sigmoid(-beta * at_least_float32(margins))
