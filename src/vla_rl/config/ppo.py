"""Hyper-parameters of PPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_rl.config.errors import require


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation on action tokens."""

    epochs: int = 2
    """Passes of the policy over each window of play."""
    minibatch: int = 256
    """Turns per optimizer step."""
    micro_batch: int = 0
    """Samples per forward pass, gradients being accumulated over a minibatch; 0 takes the whole minibatch, -1 as many
    as the free memory allows."""
    critic_learning_rate: float = 1e-3
    """Learning rate of the critic, kept over the whole run; its other Adam settings are `optimizer`'s."""
    gamma: float = 0.99
    gae_lambda: float = 0.8
    value_lambda: float = 1.0
    """Lambda of the critic's targets; 1 is Monte-Carlo, bootstrapped at the window's edge."""
    time_limit_is_terminal: bool = True
    """True: the horizon is part of the task, as in every benchmark that counts successes within it, and nothing comes
    after it; needs a critic that sees the time fraction (Pardo et al. 2018, arXiv:1712.00378). False: a time limit
    bootstraps from the value of the true final observation."""
    ratio: Literal["token", "action"] = "token"
    """Importance ratio per token, or per action (product over the K tokens, as in the paper)."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 0.0
    """Lower bound on the surrogate for negative advantages (Ye et al. 2020), e.g. 3; 0 is off."""
    target_kl: float = 0.0
    """Stop an iteration's epochs when the k3 estimate per turn passes this; 0 is off."""
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    """Coefficient of the k3 estimate of KL to the frozen initial policy."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    self_imitation_coef: float = 0.1
    """Coefficient of the negative log-likelihood of turns from episodes of this window that succeeded."""
    normalize_advantages: bool = True
    """Whiten over the whole rollout (never per minibatch)."""
    critic_max_grad_norm: float = 1.0
    """The critic's gradient is scaled down to this norm where it is longer."""
    value_coef: float = 1.0
    """Weight of the value loss; matters only for a shared, attached critic."""
    value_clip: float = 0.0
    """Clip range of the value loss; 0 is off."""
    value_loss: Literal["mse", "huber"] = "mse"
    critic_epochs: int = 2
    """Passes of the separate critic over its replay each iteration."""
    critic_first_epochs: int = 9
    """The same in the first iteration."""
    critic_replay: int = 3
    """Windows the separate critic learns from."""
    critic_warmup: int = 2
    """Iterations in which only the critic learns."""
    critic_warmup_until_explained: bool = False
    """Go on with the warm-up until explained variance is positive (at most 10 times `critic_warmup`)."""
    recompute_log_probs: bool = False
    """Take the learner's log-probs of the played tokens as the old ones instead of the sampler's. For models in
    bfloat16: cached decoding and the learner's one pass round differently there (by 0.1 and more), and the ratio would
    start away from 1. Costs one more forward pass over the window; in float32 both are equal to 1e-5."""
    logprob_tolerance: float = 1e-3
    """Largest allowed difference between the sampler's and the learner's log-probs at the first minibatch."""

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "minibatch",
            "critic_epochs",
            "critic_replay",
        ):
            require(
                getattr(self, name) >= 1,
                f"ppo.{name} must be at least 1, got {getattr(self, name)}",
            )
        require(
            self.critic_learning_rate > 0,
            f"ppo.critic_learning_rate must be positive, got {self.critic_learning_rate}",
        )
        for name in ("gamma", "gae_lambda", "value_lambda"):
            require(
                0 <= getattr(self, name) <= 1,
                f"ppo.{name} must lie in [0, 1], got {getattr(self, name)}",
            )
        for name in (
            "clip_low",
            "clip_high",
            "entropy_coef",
            "kl_coef",
            "self_imitation_coef",
            "target_kl",
            "critic_warmup",
        ):
            require(
                getattr(self, name) >= 0, f"ppo.{name} must be 0 or more, got {getattr(self, name)}"
            )
        require(
            self.micro_batch >= -1,
            f"ppo.micro_batch must be -1 (as memory allows), 0 (a whole minibatch) or more, got {self.micro_batch}",
        )
        require(
            self.kl_coef == 0 or self.kl_estimator != "k1",
            "ppo.kl_estimator k1 has an expected gradient of zero, as a penalty it only adds noise: take k2 or k3",
        )
        require(
            self.dual_clip == 0 or self.dual_clip > 1,
            f"ppo.dual_clip must be 0 (off) or above 1, got {self.dual_clip}",
        )
