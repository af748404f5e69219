"""Hyper-parameters of PPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from vla_rl.config.bounds import (
    Config,
    Count,
    LearningRate,
    NotNegative,
    OrZero,
    Positive,
    Share,
    Whole,
)
from vla_rl.config.errors import require


@dataclass(frozen=True)
class PPOConfig(Config, group="ppo"):
    """Proximal policy optimisation on action tokens."""

    epochs: Count = 2
    """Passes of the policy over each window of play."""
    minibatch: Count = 256
    """Turns per optimizer step."""
    micro_batch: Annotated[int, Ge(-1)] = 0
    """Samples per forward pass, gradients being accumulated over a minibatch; 0 takes the whole minibatch, -1 as many
    as the free memory allows."""
    critic_learning_rate: LearningRate = 1e-3
    """Learning rate of the critic, kept over the whole run; its other Adam settings are `optimizer`'s."""
    gamma: Share = 0.99
    """Discount of the future, for each turn."""
    gae_lambda: Share = 0.8
    """Lambda of the advantages (generalised advantage estimation): 0 looks one turn ahead and trusts the critic, 1 is
    Monte-Carlo."""
    value_lambda: Share = 1.0
    """Lambda of the critic's targets; 1 is Monte-Carlo, bootstrapped at the window's edge."""
    time_limit_is_terminal: bool = True
    """True: the horizon is part of the task, as in every benchmark that counts successes within it, and nothing comes
    after it; needs a critic that sees the time fraction (Pardo et al. 2018, arXiv:1712.00378). False: a time limit
    bootstraps from the value of the true final observation."""
    ratio: Literal["token", "action"] = "token"
    """Importance ratio per token, or per action (product over the K tokens, as in the paper)."""
    clip_low: Share = 0.2
    """The ratio of new to old probability is clipped at 1 minus this."""
    clip_high: NotNegative = 0.28
    """The ratio is clipped at 1 plus this; more room upwards than downwards keeps rare actions alive (DAPO,
    arXiv:2503.14476)."""
    dual_clip: Annotated[float, Gt(1), OrZero()] = 0.0
    """Lower bound on the surrogate for negative advantages (Ye et al. 2020), e.g. 3; 0 is off."""
    target_kl: NotNegative = 0.0
    """Stop an iteration's epochs when the k3 estimate per turn passes this; 0 is off."""
    entropy_coef: NotNegative = 0.0
    """Coefficient of the entropy bonus, per turn; 0 is off."""
    kl_coef: NotNegative = 0.0
    """Coefficient of the KL to the frozen initial policy, per turn; 0 is off."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL to the initial policy (Schulman 2020). k1 is refused: as a penalty its expected gradient is
    zero."""
    self_imitation_coef: NotNegative = 0.1
    """Coefficient of the negative log-likelihood of turns from episodes of this window that succeeded."""
    kept_successes: Whole = 0
    """Imitate the last so many successful episodes of each task, of this window and those before, instead of this
    window's alone. A task weighs the less the more often it succeeds, and the longer ago that was. Each keeps its
    images: at 64 px about 0.15 MB in memory and in checkpoints. 0 is off."""
    kept_half_life: Positive = 10.0
    """Windows in which the weight of a kept episode halves."""
    normalize_advantages: bool = True
    """Whiten over the whole rollout (never per minibatch)."""
    normalize_within: Literal["window", "task"] = "window"
    """Whiten the advantages of all of a window's turns together, or those of each task among themselves."""
    normalize_floor: NotNegative = 0.0
    """Divide the advantages by at least this where their standard deviation is smaller: what hardly differs is not
    blown up. With success as the only reward and a lambda of 0.8 it is near 0.2 where a third of the episodes succeed,
    and 0.04 where one in a hundred does. Adam undoes what is common to all windows: what changes are tasks, windows and
    the other terms of the loss against each other; `half_rate_outcomes` changes the step itself. 0 is off."""
    half_rate_outcomes: NotNegative = 0.0
    """Multiply a window's learning rate by n / (n + this). n is its effective number of outcomes that can be compared:
    won * lost / (won + lost) of a task's episodes that ended in the window, summed over tasks. 0 is off."""
    wait_for_success: bool = False
    """Leave out of the clipped objective the turns of tasks without a success in sight: none of the task's episodes
    succeeded in this window, and in none do the rewards, dense ones included, add up to more than 0. The imitation of
    successes is as before. Where no task of a window has one, the policy takes no step."""
    critic_max_grad_norm: Positive = 1.0
    """The critic's gradient is scaled down to this norm where it is longer."""
    value_coef: NotNegative = 1.0
    """Weight of the value loss; matters only for a shared, attached critic."""
    value_clip: NotNegative = 0.0
    """Clip range of the value loss; 0 is off."""
    value_loss: Literal["mse", "huber"] = "mse"
    """Squared error, or Huber, which is linear in large errors."""
    critic_epochs: Count = 2
    """Passes of the separate critic over its replay each iteration."""
    critic_first_epochs: Count = 9
    """The same in the first iteration."""
    critic_replay: Annotated[int, Ge(1), Le(1000)] = 3
    """Windows the separate critic learns from."""
    critic_warmup: Whole = 2
    """Iterations in which only the critic learns."""
    critic_warmup_until_explained: bool = False
    """Go on with the warm-up until explained variance is positive (at most 10 times `critic_warmup`)."""
    recompute_log_probs: bool = False
    """Take the learner's log-probs of the played tokens as the old ones instead of the sampler's. For models in
    bfloat16: cached decoding and the learner's one pass round differently there (by 0.1 and more), and the ratio would
    start away from 1. Costs one more forward pass over the window; in float32 both are equal to 1e-5."""
    logprob_tolerance: NotNegative = 1e-3
    """Largest allowed difference between the sampler's and the learner's log-probs at the first minibatch; of turns
    that were played with the learner's own weights."""
    importance_cap: NotNegative = 5.0
    """Where older weights have played (`parallel.staleness`): largest weight of a turn, the probability of its action
    before this update over that when it was played; 0 is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.kl_coef == 0 or self.kl_estimator != "k1",
            "ppo.kl_estimator k1 has an expected gradient of zero, as a penalty it only adds noise: take k2 or k3",
        )
