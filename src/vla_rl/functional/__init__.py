"""Reinforcement-learning maths as pure functions of tensors: no state, no device, no configuration.

    returns         credit over turns: discounted returns, generalized advantages and what they bootstrap from
    policy_losses   clipped surrogate on action tokens, KL estimators, per-turn means
    group_advantages  episodes of one initial state against each other: GRPO, Dr. GRPO, RLOO
    preferences     which of two episodes is better, and the loss of direct preference optimisation
    value_losses    critic losses, explained variance
    log_probs       tempered log-softmax over the action bins, entropy, sampling
    masking         masked mean, variance, whitening
    intervals       Wilson interval, paired difference, Student's interval over seeds
    detectable      what n episodes can tell from a published rate, sign test of paired outcomes
    ranking         area under ROC, average precision, calibration, pairwise ranking, rank correlation
    precision       computations happen in float32 at least, whatever came in

Axes (legend in `vla_rl.types`): M turns of a window, N environments, B samples, K action tokens of a turn, V bins.
"""

from vla_rl.functional.detectable import detectable_rates, sign_test
from vla_rl.functional.group_advantages import GroupAdvantage, group_advantages
from vla_rl.functional.intervals import (
    Interval,
    PairedDifference,
    mean_interval,
    mean_of_intervals,
    paired_difference,
    student_quantile,
    wilson_interval,
)
from vla_rl.functional.log_probs import (
    action_log_softmax,
    entropy,
    gather_log_probs,
    sample_from_uniforms,
)
from vla_rl.functional.masking import masked_mean, masked_var, masked_whiten
from vla_rl.functional.policy_losses import (
    KLEstimator,
    Ratio,
    SurrogateStatistics,
    clipped_surrogate,
    importance_weights,
    kl_estimate,
    surrogate_statistics,
    turn_mean,
)
from vla_rl.functional.precision import at_least_float32
from vla_rl.functional.preferences import (
    Pairs,
    preference_loss,
    preference_pairs,
    preference_slopes,
)
from vla_rl.functional.ranking import (
    Ranking,
    Reliability,
    area_under_roc,
    average_precision,
    average_ranks,
    calibration_error,
    pairwise_ranking,
    rank_correlation,
    reliability,
)
from vla_rl.functional.returns import (
    BootstrapInputs,
    bootstrap_inputs,
    discounted_returns,
    generalized_advantages,
)
from vla_rl.functional.value_losses import (
    ErrorKind,
    clipped_value_loss,
    explained_variance,
    huber_value_loss,
    squared_value_loss,
)

__all__ = [
    "BootstrapInputs",
    "ErrorKind",
    "GroupAdvantage",
    "Interval",
    "KLEstimator",
    "PairedDifference",
    "Pairs",
    "Ranking",
    "Ratio",
    "Reliability",
    "SurrogateStatistics",
    "action_log_softmax",
    "area_under_roc",
    "at_least_float32",
    "average_precision",
    "average_ranks",
    "bootstrap_inputs",
    "calibration_error",
    "clipped_surrogate",
    "clipped_value_loss",
    "detectable_rates",
    "discounted_returns",
    "entropy",
    "explained_variance",
    "gather_log_probs",
    "generalized_advantages",
    "group_advantages",
    "huber_value_loss",
    "importance_weights",
    "kl_estimate",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "mean_interval",
    "mean_of_intervals",
    "paired_difference",
    "pairwise_ranking",
    "preference_loss",
    "preference_pairs",
    "preference_slopes",
    "rank_correlation",
    "reliability",
    "sample_from_uniforms",
    "sign_test",
    "squared_value_loss",
    "student_quantile",
    "surrogate_statistics",
    "turn_mean",
    "wilson_interval",
]
