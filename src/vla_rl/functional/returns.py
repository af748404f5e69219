"""Credit over turns: discounted returns and generalized advantages, time-major (M turns, N environments).

Three facts about each turn decide how credit flows, and `done` flags mix them up:

    discounts[t]    may the future count at all?   gamma, or 0 after a success
    next_values[t]  what is the reached state worth?   taken BEFORE any reset
    trace[t]        is turn t + 1 of the same episode?   0 after a success and after a time limit

A success ends the return. A time limit ends only the episode: the return is bootstrapped from the value of
the true final observation, and what follows belongs to another episode (Pardo et al. 2018, arXiv:1712.00378).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla_rl.functional.precision import at_least_float32


class BootstrapInputs(NamedTuple):
    """The three arrays that `generalized_advantages` needs beside rewards and values."""

    discounts: Float[Tensor, "M N"]
    next_values: Float[Tensor, "M N"]
    trace: Float[Tensor, "M N"]


def bootstrap_inputs(
    values: Float[Tensor, "M N"],
    terminated: Bool[Tensor, "M N"],
    truncated: Bool[Tensor, "M N"],
    final_values: Float[Tensor, "M N"],
    following_values: Float[Tensor, " N"],
    gamma: float,
    *,
    time_limit_is_terminal: bool = False,
) -> BootstrapInputs:
    """Translate how turns ended into discounts, next values and trace.

    Args:
        values: V(o_t) of each turn of the window.
        terminated: The turn succeeded. Wins where both flags are set.
        truncated: The turn hit the time limit.
        final_values: V of the true final observation where `truncated`; read nowhere else.
        following_values: V of the observation that follows the window, for episodes that run across its edge.
        gamma: Discount per turn, in [0, 1].
        time_limit_is_terminal: Treat the horizon as part of the task, worth nothing afterwards. Sound only
            for values that see the time.
    """
    ended = terminated | truncated
    no_future = ended if time_limit_is_terminal else terminated
    values = at_least_float32(values)
    reached = torch.cat([values[1:], at_least_float32(following_values)[None]])
    next_values = torch.where(truncated, at_least_float32(final_values), reached)
    # zero, not only discounted by zero: the value after a success is never looked at, and may be NaN
    next_values = torch.where(no_future, torch.zeros_like(values), next_values)
    discounts = torch.where(no_future, torch.zeros_like(values), torch.full_like(values, gamma))
    return BootstrapInputs(discounts, next_values, (~ended).to(values.dtype))


def discounted_returns(
    rewards: Float[Tensor, "M N"],
    discounts: Float[Tensor, "M N"],
    bootstrap: Float[Tensor, " N"],
) -> Float[Tensor, "M N"]:
    """Discounted sums of rewards, with a value for what follows the window.

        G_t = r_t + d_t G_{t+1},     G_M = bootstrap

    A discount of 0 keeps episodes of one column apart. A time limit inside the window needs the value of its
    final observation, which this recursion has no place for: use `generalized_advantages` with lambda 1.
    """
    rewards, discounts = at_least_float32(rewards), at_least_float32(discounts)
    returns = torch.empty_like(rewards)
    following = at_least_float32(bootstrap)
    for t in reversed(range(len(rewards))):
        following = rewards[t] + discounts[t] * following
        returns[t] = following
    return returns


def generalized_advantages(
    rewards: Float[Tensor, "M N"],
    discounts: Float[Tensor, "M N"],
    values: Float[Tensor, "M N"],
    next_values: Float[Tensor, "M N"],
    trace: Float[Tensor, "M N"],
    gae_lambda: float,
) -> Float[Tensor, "M N"]:
    """Advantages by generalized advantage estimation.

        delta_t = r_t + d_t V'_t - V_t
        A_t     = delta_t + d_t lambda c_t A_{t+1},     A_M = 0

    with V' = `next_values` and c = `trace`. Schulman et al. 2016 (arXiv:1506.02438), with gamma and the
    episode ends folded into per-turn discounts. The window's edge stops the sum, and delta bootstraps there.

    Args:
        rewards: r_t, received for turn t.
        discounts: d_t, gamma where the future counts, 0 after a success.
        values: V(o_t).
        next_values: Value of the state that turn t reached, before any reset.
        trace: 1 where turn t + 1 continues the same episode, 0 after its end of either kind.
        gae_lambda: 0 is the one-step temporal difference, 1 is Monte-Carlo.

    Returns:
        Advantages, not normalised, without gradient. `values + advantages` are the lambda-returns, a critic's targets.
    """
    with torch.no_grad():
        rewards, discounts = at_least_float32(rewards), at_least_float32(discounts)
        values, next_values = at_least_float32(values), at_least_float32(next_values)
        deltas = rewards + discounts * next_values - values
        decay = discounts * gae_lambda * at_least_float32(trace)
        advantages = torch.empty_like(deltas)
        following = torch.zeros_like(deltas[0])
        for t in reversed(range(len(deltas))):
            following = deltas[t] + decay[t] * following
            advantages[t] = following
        return advantages
