"""How far samples spread: differential entropy from nearest neighbours, with intervals over groups of samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from vla_rl.functional.intervals import Interval


def entropy_terms(
    samples: Float64[np.ndarray, "n D"],
    k: int = 4,
    bounds: Float64[np.ndarray, "2 D"] | None = None,
) -> Float64[np.ndarray, " n"]:
    """One term per sample, whose mean is the differential entropy of what they were drawn from, in nats.

        H = psi(n) - psi(k) + (1 / n) sum_i log V_i,    V_i = volume of the cube that reaches to the k-th neighbour

    Kozachenko and Leonenko 1987, with the maximum norm, in the form of Kraskov, Stoegbauer and Grassberger 2004
    (equation 20, doi:10.1103/PhysRevE.69.066138). Samples must not coincide: rounded ones are spread over their cells
    before.

    bounds: least and greatest value of each dimension, where samples lie in a box. Cubes are then cut where they leave
    it (Ao and Li 2022, arXiv:2209.11015); without that, cubes at the edge count space in which nothing can be, and
    the estimate is too high, much so in many dimensions.

    Raises:
        ValueError: If there are no more than `k` samples, one is not finite or out of bounds, or more than `k` of them
            coincide.
    """
    # libraries of the extra `report`, and this module is imported by all
    from scipy.spatial import KDTree  # pyright: ignore[reportMissingTypeStubs]
    from scipy.special import digamma  # pyright: ignore

    n, dimensions = samples.shape
    if not 1 <= k < n or dimensions < 1:
        raise ValueError(
            f"expected more than k = {k} samples of one dimension or more, got {samples.shape}"
        )
    if not np.isfinite(samples).all():
        raise ValueError("expected finite samples")
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    if not ((samples >= low) & (samples <= high)).all():
        raise ValueError("expected samples within their bounds")
    tree: Any = KDTree(samples)
    # the first neighbour is the sample itself
    reach: Float64[np.ndarray, "n 1"] = tree.query(samples, k=[k + 1], p=np.inf)[0]
    if not (reach > 0).all():
        raise ValueError(f"more than {k} samples coincide: spread rounded ones over their cells")
    sides = np.minimum(samples + reach, high) - np.maximum(samples - reach, low)
    constant = float(digamma(n)) - float(digamma(k))  # pyright: ignore
    return constant + np.log(sides).sum(axis=1)


def spread_over_cells(
    samples: Float64[np.ndarray, "n D"],
    widths: Float64[np.ndarray, " D"],
    rng: np.random.Generator,
) -> Float64[np.ndarray, "n D"]:
    """Rounded samples, each somewhere within its cell: uniform dequantisation (Theis et al. 2016, arXiv:1511.01844).

    The entropy of the result is that of the cells' probabilities plus the logarithm of a cell's volume.
    """
    return samples + (rng.random(samples.shape) - 0.5) * widths


def cell_widths(samples: Float64[np.ndarray, "n D"], otherwise: float) -> Float64[np.ndarray, " D"]:
    """Width of the cells that each dimension was rounded to: the smallest distance of two different values.

    `otherwise` where all values are the same.
    """
    widths = np.full(samples.shape[1], otherwise)
    for dimension, column in enumerate(samples.T):
        gaps: Float64[np.ndarray, " g"] = np.diff(np.unique(column)).astype(np.float64)
        gaps = gaps[gaps > 1e-6]  # the same value, rounded otherwise
        if len(gaps):
            widths[dimension] = float(gaps.min())
    return widths


def mean_over_groups(
    terms: Float64[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"],
    resamples: Int64[np.ndarray, "R G"],
    confidence: float = 0.95,
) -> tuple[float, Interval, Float64[np.ndarray, " R"]]:
    """Mean of all terms, its percentile interval from a bootstrap over whole groups, and the resampled means.

    Terms of one group (an episode) hang together, so that groups are drawn, not terms (Davison and Hinkley 1997,
    section 3.8). groups: of each term, 0..G-1. resamples: groups drawn with replacement, the same for several
    quantities whose differences count. Neighbours are not looked for again: a sample drawn twice is its own neighbour,
    and the entropy would come out too low.
    """
    count = int(resamples.shape[1])
    sums = np.bincount(groups, weights=terms, minlength=count)
    sizes = np.bincount(groups, minlength=count).astype(np.float64)
    drawn = sizes[resamples].sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums[resamples].sum(axis=1) / drawn
    return float(terms.mean()), percentiles(means, confidence), means


def percentiles(values: Float64[np.ndarray, " R"], confidence: float = 0.95) -> Interval:
    """The middle `confidence` of resampled values."""
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))


def effective_volume(entropy: float, bounds: Float64[np.ndarray, "2 D"]) -> float:
    """Volume of what would have this entropy if it were filled evenly, as a share of the box between `bounds`."""
    return math.exp(entropy - float(np.log(bounds[1] - bounds[0]).sum()))
