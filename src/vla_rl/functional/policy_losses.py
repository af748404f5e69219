"""Policy losses on action tokens: PPO's clipped surrogate and estimators of KL divergence.

A turn is one action sequence of K tokens, and log pi(a | o) is the sum of its tokens' log-probabilities
(VLA-RL, arXiv:2505.18719). Every loss here therefore SUMS over the K tokens and averages over the B turns
(`turn_mean`). A per-token and a per-action ratio then have the same gradient as long as the policy has
not moved, -A grad log pi(a | o), and learning rates and coefficients mean the same for both.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vla_rl.functional.masking import masked_mean
from vla_rl.functional.precision import at_least_float32

Ratio = Literal["token", "action"]
KLEstimator = Literal["k1", "k2", "k3"]

# exp(20) = 4.9e8 is past every clip range, and its square still fits in float32: an infinite ratio would
# turn the clipped branch's zero gradient into 0 * inf = NaN.
_MAX_LOG_RATIO = 20.0


class SurrogateStatistics(NamedTuple):
    """What to watch during an update; scalars on the device, without gradient."""

    clip_fraction: Float[Tensor, ""]
    """Share of ratios outside [1 - clip_low, 1 + clip_high], before any clamping."""
    ratio_mean: Float[Tensor, ""]
    ratio_max: Float[Tensor, ""]
    approx_kl_k1: Float[Tensor, ""]
    """KL(old || new) per turn, summed over its tokens; unbiased for tokens from the old policy, any sign."""
    approx_kl_k3: Float[Tensor, ""]
    """The same by k3: unbiased, never negative, less noisy."""


def turn_mean(
    per_token: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"] | None = None
) -> Float[Tensor, ""]:
    """Sum over the tokens of a turn, mean over the turns: (1/B) sum_b sum_k x_bk.

    Where a mask is given, only selected tokens count, and only turns with at least one of them; with none at
    all the result is 0. Use it for entropy bonuses, KL penalties and negative log-likelihoods alike, so that
    their coefficients weigh against the surrogate per turn.
    """
    per_token = at_least_float32(per_token)
    if mask is None:
        return masked_mean(per_token.sum(-1))
    kept = torch.where(mask, per_token, torch.zeros_like(per_token))
    return masked_mean(kept.sum(-1), mask.any(-1))


def clipped_surrogate(
    new_log_probs: Float[Tensor, "B K"],
    old_log_probs: Float[Tensor, "B K"],
    advantages: Float[Tensor, " B"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    *,
    ratio: Ratio = "token",
    dual_clip: float = 0.0,
    mask: Bool[Tensor, "B K"] | None = None,
    importance: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """PPO's clipped surrogate as a loss to minimise.

        rho  = exp(log pi_new - log pi_old)        per token, or of the sum over the K tokens
        L    = min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)
        L    = max(L, dual_clip A)                 where A < 0 and dual_clip > 0
        loss = -(1/B) sum_b sum_k L_bk             (one L per turn for a per-action ratio)

    Schulman et al. 2017 (arXiv:1707.06347, eq. 7); the asymmetric range is DAPO's "clip-higher" (Yu et al.
    2025, arXiv:2503.14476), the dual clip is Ye et al. 2020 (arXiv:1912.09729).

    Args:
        new_log_probs: Of the sampled tokens under the policy being trained.
        old_log_probs: Of the same tokens under the distribution they were sampled from; no gradient.
        advantages: One per turn, shared by its tokens; no gradient.
        clip_low: How far below 1 the ratio still matters for negative advantages.
        clip_high: How far above 1 it still matters for positive ones.
        ratio: Importance ratio per `token`, or per `action` (the product over the turn, as in the paper).
        dual_clip: Bound on the loss of bad actions that became much likelier, above 1; 0 is off.
        mask: Tokens that count.
        importance: Weight of each turn where another policy than that of `old_log_probs` has sampled it
            (`importance_weights`); no gradient. None: all count alike.

    Raises:
        ValueError: If the log-probabilities differ in shape, or advantages are not one per turn. Broadcasting
            would otherwise give a loss K times too large without a word.
    """
    if advantages.shape != new_log_probs.shape[:1]:
        raise ValueError(
            f"expected one advantage per turn, ({len(new_log_probs)},), got {tuple(advantages.shape)}"
        )
    rho, counted = _ratios(_log_ratio(new_log_probs, old_log_probs, mask), mask, ratio)
    credit = at_least_float32(advantages).detach().unsqueeze(-1)
    surrogate = torch.minimum(rho * credit, rho.clamp(1 - clip_low, 1 + clip_high) * credit)
    if dual_clip > 0:
        surrogate = torch.where(credit < 0, torch.maximum(surrogate, dual_clip * credit), surrogate)
    if importance is not None:
        surrogate = at_least_float32(importance).detach().unsqueeze(-1) * surrogate
    return -turn_mean(surrogate, counted)


@torch.no_grad()
def importance_weights(
    proximal_log_probs: Float[Tensor, "B K"],
    behavior_log_probs: Float[Tensor, "B K"],
    cap: float = 0.0,
) -> Float[Tensor, " B"]:
    """Weight of each turn in the decoupled objective: its probability under the proximal over the behaviour policy.

        w    = prod_k pi_prox(a_k) / pi_behav(a_k)      of the whole turn, since all its tokens share one advantage
        loss = -(1/B) sum_b w_b sum_k min(rho A, clip(rho) A)_bk,    rho = pi_new / pi_prox

    Hilton et al. 2021 (arXiv:2110.00641, eq. 5 and 6). In expectation over turns of the behaviour policy the loss
    and its gradient are those over turns of the proximal policy. A `cap` above 0 bounds the weights and with them the
    variance, at the price of a bias towards turns that the behaviour policy liked.
    """
    log_ratio = _log_ratio(proximal_log_probs, behavior_log_probs, None)
    weights, _ = _ratios(log_ratio, None, "action")
    weights = weights.squeeze(-1)
    return weights.clamp(max=cap) if cap > 0 else weights


@torch.no_grad()
def surrogate_statistics(
    new_log_probs: Float[Tensor, "B K"],
    old_log_probs: Float[Tensor, "B K"],
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    *,
    ratio: Ratio = "token",
    mask: Bool[Tensor, "B K"] | None = None,
) -> SurrogateStatistics:
    """How far the policy has moved from the one that sampled; arguments as for `clipped_surrogate`."""
    log_ratio = _log_ratio(new_log_probs, old_log_probs, mask)
    rho, counted = _ratios(log_ratio, mask, ratio)
    outside = (rho < 1 - clip_low) | (rho > 1 + clip_high)
    # the tokens come from the old policy, so KL(old || new): in kl_estimate's terms pi is the old one
    zeros = torch.zeros_like(log_ratio)
    return SurrogateStatistics(
        clip_fraction=masked_mean(outside.to(rho.dtype), counted),
        ratio_mean=masked_mean(rho, counted),
        ratio_max=(
            rho if counted is None else torch.where(counted, rho, torch.zeros_like(rho))
        ).amax(),
        approx_kl_k1=turn_mean(kl_estimate(zeros, log_ratio, "k1"), mask),
        approx_kl_k3=turn_mean(kl_estimate(zeros, log_ratio, "k3"), mask),
    )


def kl_estimate(
    log_probs: Float[Tensor, "*batch"],
    other_log_probs: Float[Tensor, "*batch"],
    estimator: KLEstimator = "k3",
) -> Float[Tensor, "*batch"]:
    """Per-token estimates of KL(pi || other) from tokens that were sampled from pi.

        l = log other(x) - log pi(x),   x ~ pi
        k1 = -l                  unbiased, noisy, may be negative
        k2 = l^2 / 2             biased, low noise, never negative
        k3 = exp(l) - 1 - l      unbiased, low noise, never negative

    J. Schulman, "Approximating KL divergence" (2020). For "how far did the update go", pi is the old policy
    and `other` the new one: KL(old || new). For a penalty towards a reference, pi is the policy being trained
    and `other` the reference: KL(pi || reference).

    A good estimate is not always a good loss (Tang and Munos 2025, arXiv:2506.09477). Differentiated with
    respect to `log_probs`, the expected gradient of k1 is zero, that of k2 is the gradient of KL(pi || other),
    and that of k3 is the gradient of KL(other || pi). k2 and k3 pull towards the reference; k1 only adds noise.
    """
    log_ratio = at_least_float32(other_log_probs) - at_least_float32(log_probs)
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    if estimator == "k3":
        # expm1 keeps the small differences that exp(l) - 1 would round away
        return log_ratio.clamp(max=_MAX_LOG_RATIO).expm1() - log_ratio
    raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', got {estimator!r}")


def _log_ratio(new: Tensor, old: Tensor, mask: Tensor | None) -> Tensor:
    """Per-token log pi_new - log pi_old (B, K), 0 where not selected."""
    if new.shape != old.shape or new.ndim != 2:
        raise ValueError(
            f"expected log-probs of one shape (B, K), got {tuple(new.shape)} and {tuple(old.shape)}"
        )
    log_ratio = at_least_float32(new) - at_least_float32(old).detach()
    return log_ratio if mask is None else torch.where(mask, log_ratio, torch.zeros_like(log_ratio))


def _ratios(log_ratio: Tensor, mask: Tensor | None, ratio: Ratio) -> tuple[Tensor, Tensor | None]:
    """Importance ratios, (B, K) per token or (B, 1) per action, and which of them count."""
    if ratio == "action":
        log_ratio = log_ratio.sum(-1, keepdim=True)
        mask = None if mask is None else mask.any(-1, keepdim=True)
    elif ratio != "token":
        raise ValueError(f"ratio must be 'token' or 'action', got {ratio!r}")
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp(), mask
