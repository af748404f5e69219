"""How well a score tells two classes apart, and whether a probability means what it says.

numpy alone: scores come from a model that has finished, there is nothing to differentiate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

Scores = Float[np.ndarray, " N"]
Outcomes = Bool[np.ndarray, " N"] | Float[np.ndarray, " N"]
"""Whether it was so, or to what share, 0 to 1."""


def average_ranks(values: Float[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """Ranks 1..N in ascending order; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place].astype(np.float64)


def area_under_roc(scores: Scores, positive: Bool[np.ndarray, " N"]) -> float:
    """The chance that a random positive scores above a random negative, ties counted half.

        AUROC = (sum of the positives' ranks - P (P + 1) / 2) / (P N)

    the Mann-Whitney statistic (Hanley, McNeil 1982). 0.5 is chance, 1 a perfect order, whatever the scores' scale.

    Raises:
        ValueError: If one class is missing, or a score is not finite.
    """
    positives, negatives = _require_both(scores, positive)
    total = float(average_ranks(scores)[positive].sum())
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def average_precision(scores: Scores, positive: Bool[np.ndarray, " N"]) -> float:
    """Precision averaged over the recall that each threshold adds.

        AP = sum_n (R_n - R_{n-1}) P_n     over the distinct scores, descending

    without interpolation (Manning et al. 2008, section 8.4). The share of positives is what chance reaches. Equal
    scores are one threshold, so their order does not matter.

    Raises:
        ValueError: If one class is missing, or a score is not finite.
    """
    positives, _ = _require_both(scores, positive)
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(positive[order])
    ordered = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ordered) != 0), len(ordered) - 1)
    recall = found[ends] / positives
    precision = found[ends] / (ends + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


class Reliability(NamedTuple):
    """A reliability diagram: bins of equal width over the predicted probability. NaN where a bin is empty."""

    edges: Float64[np.ndarray, " bins_1"]
    counts: Int64[np.ndarray, " bins"]
    predicted: Float64[np.ndarray, " bins"]  # mean probability
    observed: Float64[np.ndarray, " bins"]  # share of positives


def reliability(probabilities: Scores, positive: Outcomes, bins: int = 10) -> Reliability:
    """How often it was so, against how often it was said to be so. A bin holds its lower edge, the last one both.

    Raises:
        ValueError: If there is nothing to count, there is no bin, or a probability lies outside [0, 1].
    """
    if bins < 1 or not len(probabilities):
        raise ValueError(
            f"expected a bin and a probability or more, got {bins} and {len(probabilities)}"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("expected probabilities in [0, 1]")
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, probabilities, side="right") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(place, probabilities.astype(np.float64), bins) / counts
        observed = np.bincount(place, positive.astype(np.float64), bins) / counts
    return Reliability(edges, counts.astype(np.int64), predicted, observed)


def calibration_error(probabilities: Scores, positive: Outcomes, bins: int = 10) -> float:
    """Expected calibration error: sum_b n_b / N |observed_b - predicted_b| (Naeini et al. 2015; Guo et al. 2017).

    0 where every bin's share of positives is its mean probability. Raises ValueError as `reliability` does.
    """
    found = reliability(probabilities, positive, bins)
    full = found.counts > 0
    gaps = np.abs(found.observed[full] - found.predicted[full])
    return float(found.counts[full] @ gaps / found.counts.sum())


class Ranking(NamedTuple):
    """Pairs put in the right order, ties counted half, of how many."""

    right: float
    pairs: int

    @property
    def accuracy(self) -> float:
        return self.right / self.pairs if self.pairs else float("nan")


def pairwise_ranking(better: Float[np.ndarray, " P"], worse: Float[np.ndarray, " Q"]) -> Ranking:
    """All P Q pairs of one that should score higher and one that should score lower. Add those of several groups up."""
    ordered = np.sort(worse)
    below = np.searchsorted(ordered, better, side="left")
    not_above = np.searchsorted(ordered, better, side="right")
    return Ranking(float((below + not_above).sum()) / 2, len(better) * len(worse))


def rank_correlation(x: Scores, y: Float[np.ndarray, " N"]) -> float:
    """Spearman's: the correlation of the ranks, ties averaged. NaN where either is constant, or for a single item."""
    if len(x) != len(y):
        raise ValueError(f"expected two numbers for each item, got {len(x)} and {len(y)}")
    if len(x) < 2:
        return float("nan")
    a, b = average_ranks(x), average_ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else float("nan")


def _require_both(scores: Scores, positive: Bool[np.ndarray, " N"]) -> tuple[int, int]:
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        raise ValueError(
            f"expected both classes, got {positives} positives and {negatives} negatives"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are not finite")
    return positives, negatives
