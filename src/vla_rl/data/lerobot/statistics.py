"""Statistics of features, in the shapes that meta/stats.json and meta/episodes hold.

Quantiles are exact, over the frames themselves. lerobot approximates them with histograms and takes the weighted
mean of the episodes' quantiles for the dataset's; its consumers only read the values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from vla_rl.runtime.external import Phrase, check_array, dotted, fault, read_json

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
Statistics = dict[str, np.ndarray]
"""min, max, mean, std, q01 ... q99 as float64, count as int64."""


def column_statistics(values: np.ndarray) -> Statistics:
    """Statistics over the F frames of a numeric column of shape (F,) or (F, D); scalars count as D = 1."""
    rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    result = {
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "mean": rows.mean(axis=0),
        "std": rows.std(axis=0),
        "count": np.array([len(rows)], dtype=np.int64),
    }
    levels = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return result | dict(zip(QUANTILES, levels, strict=True))


def pixel_histogram(pictures: UInt8[np.ndarray, "L H W 3"]) -> Int64[np.ndarray, "3 256"]:
    """How often each of the 256 values occurs in each channel: all that pixel statistics need."""
    return np.stack([np.bincount(pictures[..., c].ravel(), minlength=256) for c in range(3)])


def pixel_statistics(histogram: Int64[np.ndarray, "3 256"], frames: int) -> Statistics:
    """Statistics of pixel values scaled to 0..1, shape (3, 1, 1); `count` is the number of frames."""
    levels = np.arange(256) / 255.0
    total = histogram.sum(axis=1)
    mean = histogram @ levels / total
    variance = np.array([h @ (levels - m) ** 2 for h, m in zip(histogram, mean, strict=True)])
    present = [np.flatnonzero(h) for h in histogram]
    columns = {
        "min": levels[[p[0] for p in present]],
        "max": levels[[p[-1] for p in present]],
        "mean": mean,
        "std": np.sqrt(variance / total),
    }
    columns |= {name: _histogram_quantile(histogram, q) for name, q in QUANTILES.items()}
    result = {name: column.reshape(3, 1, 1) for name, column in columns.items()}
    return result | {"count": np.array([frames], dtype=np.int64)}


def _histogram_quantile(histogram: Int64[np.ndarray, "3 256"], quantile: float) -> np.ndarray:
    """The linear quantile (as numpy defines it) of the values counted, scaled to 0..1."""
    result = []
    for counts in histogram:
        cumulative = np.cumsum(counts)
        rank = quantile * (cumulative[-1] - 1)
        low, high = np.searchsorted(cumulative, [np.floor(rank), np.ceil(rank)], side="right")
        result.append((low + (high - low) * (rank - np.floor(rank))) / 255.0)
    return np.array(result)


ASCENDING = (("min", "max"), ("q01", "q99"))
LARGEST = float(np.finfo(np.float64).max)  # counts and seeds are larger than what a robot measures
REMEDY = "Compute the statistics again with the program that wrote the dataset."


def read_statistics(path: Path, folder: Path) -> dict[str, Statistics]:
    """meta/stats.json of `folder` as arrays.

    Raises UserError, naming the key, for what is no array of finite numbers, for min above max, q01 above q99, and a
    std below 0. Approximate quantiles, as lerobot computes them, may pass min and max by a little.
    """
    raw = read_json(path, dict[str, dict[str, Any]], inside=folder, remedy=REMEDY)
    result: dict[str, Statistics] = {}
    for name, entry in raw.items():
        found = {key: _array(value, path, dotted((name, key))) for key, value in entry.items()}
        for low, high in ASCENDING:
            if low in found and high in found:
                ordered = (
                    found[low].shape == found[high].shape and (found[low] <= found[high]).all()
                )
                if not ordered:
                    what = Phrase("one below it, or of another shape")
                    expected = f"numbers of at least those of {low}"
                    raise fault(path, dotted((name, high)), expected, what, REMEDY)
        if "std" in found and (found["std"] < 0).any():
            expected = "numbers of at least 0"
            raise fault(path, dotted((name, "std")), expected, float(found["std"].min()), REMEDY)
        result[name] = found
    return result


def _array(value: Any, path: Path, key: str) -> np.ndarray:
    try:
        array = np.atleast_1d(np.array(value))
    except ValueError:  # lists of unequal lengths
        array = np.array([None])
    return check_array(array, source=path, key=key, kinds="fiub", largest=LARGEST, remedy=REMEDY)


def to_json(statistics: dict[str, Statistics]) -> dict[str, dict[str, Any]]:
    """As nested lists."""
    return {name: {k: v.tolist() for k, v in s.items()} for name, s in statistics.items()}
