"""Hyper-parameters of the algorithms that compare episodes of one initial state: GRPO and TPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from vla_rl.config.bounds import Config, Count, NotNegative, OrZero, Positive, Share, Whole
from vla_rl.config.errors import require

GroupSize = Annotated[int, Ge(2), Le(4096)]


@dataclass(frozen=True)
class GRPOConfig(Config, group="grpo"):
    """Group-relative policy optimisation: PPO's clipped objective, and a group's mean in the critic's place."""

    group_size: GroupSize = 8
    """Episodes of a group, all from one initial state and each played to its end; a group of more than `env.num_envs`
    is played in several rounds."""
    groups: Count = 8
    """Groups that an iteration learns from."""
    extra_groups: Whole = 8
    """Dynamic sampling (DAPO, arXiv:2503.14476): at most so many groups more are played in an iteration, in the place
    of those whose episodes all succeeded or all failed. 0: none is replaced."""
    keep: Literal["mixed", "all"] = "mixed"
    """mixed: a group whose episodes all succeeded, or all failed, is not learned from. all: every group is; without a
    dense reward such a group moves nothing but the terms beside the surrogate."""
    advantage: Literal["normalized", "centered", "leave-one-out"] = "normalized"
    """An episode's return against its group's: (R - mean) / std (GRPO), R - mean (Dr. GRPO, arXiv:2503.20783), or R -
    mean of the others (RLOO, arXiv:2402.14740)."""
    weighting: Literal["turns", "episodes"] = "turns"
    """turns: every turn weighs the same, which is the policy gradient. episodes: every episode weighs the same, its
    turns by one over its length, as published GRPO has it; turns of failures, which are long, then count less."""
    epochs: Count = 1
    """Passes over the groups of an iteration."""
    minibatch: Count = 256
    """Turns per optimizer step."""
    micro_batch: Annotated[int, Ge(-1)] = 0
    """Samples per forward pass, gradients being accumulated over a minibatch; 0 takes the whole minibatch, -1 as many
    as the free memory allows."""
    ratio: Literal["token", "action"] = "token"
    """Importance ratio per token, or per action (product over the K tokens)."""
    clip_low: Share = 0.2
    """The ratio of new to old probability is clipped at 1 minus this."""
    clip_high: NotNegative = 0.28
    """The ratio is clipped at 1 plus this; more room upwards than downwards keeps rare actions alive (clip-higher,
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
    self_imitation_coef: NotNegative = 0.0
    """Coefficient of the negative log-likelihood of turns from episodes that succeeded."""
    recompute_log_probs: bool = False
    """Take the learner's log-probs of the played tokens as the old ones instead of the sampler's, as
    `ppo.recompute_log_probs`."""
    logprob_tolerance: NotNegative = 1e-3
    """Largest allowed difference between the sampler's and the learner's log-probs at the first minibatch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.kl_coef == 0 or self.kl_estimator != "k1",
            "grpo.kl_estimator k1 has an expected gradient of zero, as a penalty it only adds noise: take k2 or k3",
        )


@dataclass(frozen=True)
class TPOConfig(Config, group="tpo"):
    """Trajectory-wise preference optimisation (GRAPE, arXiv:2411.19309): pairs of whole episodes, again and again."""

    group_size: GroupSize = 8
    """Episodes of a group, all from one initial state and each played to its end."""
    groups: Count = 8
    """Groups that an iteration plays."""
    extra_groups: Whole = 8
    """At most so many groups more are played in an iteration, in the place of those whose episodes all succeeded or all
    failed. 0: none is replaced."""
    pairs: Annotated[int, Ge(1), Le(100_000)] = 4
    """Pairs that are made of a group at most."""
    success_weight: NotNegative = 1.0
    """Weight of success, 0 or 1, in the score by which the episodes of a group are ranked."""
    reward_weight: NotNegative = 1.0
    """Weight of an episode's dense rewards, summed (`reward.kind`), in that score."""
    likelihood_weight: NotNegative = 0.0
    """Weight of the log-likelihood of the episode's actions under the policy that played them, in that score. GRAPE's
    code has 0.01; above 0 hardly any two episodes tie, and what was likely anyway ranks those that are alike."""
    beta: Positive = 0.1
    """How soon a pair counts as told apart: the loss is -log sigmoid(beta * difference of log-ratios)."""
    self_imitation_coef: NotNegative = 0.0
    """Coefficient of the negative log-likelihood of the chosen episodes, a mean over their turns (RPO,
    arXiv:2404.19733), which keeps them from becoming less likely together with the rejected ones; 0 is off."""
    reference: Literal["start", "played"] = "start"
    """What log-ratios are taken against. start: the policy that the run starts from. played: the one that has played
    the iteration's episodes, so that every iteration is a small step from where it begins."""
    window: Whole = 0
    """Turns that are compared at a time: the n-th so many of one episode with those of the other, as far as the
    shorter goes. 0: whole episodes."""
    epochs: Count = 1
    """Passes over the pairs of an iteration."""
    minibatch: Count = 8
    """Pairs per optimizer step."""
    micro_batch: Annotated[int, Ge(-1)] = 0
    """Turns per forward pass, gradients being accumulated over a minibatch; 0 takes all turns of its pairs, -1 as many
    as the free memory allows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.success_weight + self.reward_weight + self.likelihood_weight > 0,
            "tpo: nothing ranks the episodes, all weights are 0: set tpo.success_weight, tpo.reward_weight or "
            "tpo.likelihood_weight",
        )
