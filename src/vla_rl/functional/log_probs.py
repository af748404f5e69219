"""Distributions over the action bins: tempered log-softmax, gathering, entropy, sampling.

`logits` are those of the action tokens alone. Sampler and learner must both come through
`action_log_softmax` with the same temperature, or the importance ratio compares two different policies.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vla_rl.functional.precision import at_least_float32


def action_log_softmax(
    logits: Float[Tensor, "*batch V"], temperature: float = 1.0
) -> Float[Tensor, "*batch V"]:
    """Log-probabilities log softmax(logits / temperature) over the V action bins, in float32.

    Raises:
        ValueError: If `temperature` is not positive. Greedy decoding is `logits.argmax(-1)` and has no
            log-probabilities to learn from.
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature must be positive, got {temperature}; take logits.argmax(-1) to decode greedily"
        )
    return torch.log_softmax(at_least_float32(logits) / temperature, dim=-1)


def gather_log_probs(
    log_probs: Float[Tensor, "*batch V"], tokens: Int64[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """The log-probability of each given token (a bin, 0..V-1)."""
    return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def entropy(log_probs: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch"]:
    """Entropy -sum p log p over the bins, in nats, from 0 to log V; impossible bins (log p = -inf) count 0."""
    log_probs = at_least_float32(log_probs)
    # 0 * -inf would be NaN, in the value and again in the gradient
    finite = torch.where(log_probs.isneginf(), torch.zeros_like(log_probs), log_probs)
    return -(log_probs.exp() * finite).sum(-1)


def sample_from_uniforms(
    log_probs: Float[Tensor, "*batch V"], uniforms: Float[Tensor, "*batch"]
) -> Int64[Tensor, "*batch"]:
    """Sample one bin for each row by inverting its cumulative distribution at a number in [0, 1).

        token = first i with  p_0 + ... + p_i > u  and  p_i > 0

    Each row depends on its own uniform alone, so a result does not change with the batch around it. A bin
    whose probability is 0 in float32 is never returned. Where rounding leaves the total below `u`, the
    last possible bin is taken. NaN log-probabilities give bin 0: check for them where they arise.
    """
    probs = at_least_float32(log_probs).exp()
    possible = probs > 0
    # a parallel scan may round two neighbouring sums apart although nothing lies between them
    reached = (probs.cumsum(-1) > uniforms.unsqueeze(-1)) & possible
    first_reached = reached.to(torch.int8).argmax(-1)
    last_possible = probs.shape[-1] - 1 - possible.flip(-1).to(torch.int8).argmax(-1)
    none_possible = ~possible.any(-1)
    token = torch.where(reached.any(-1), first_reached, last_possible)
    return torch.where(none_possible, torch.zeros_like(token), token)
