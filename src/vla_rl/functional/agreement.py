"""How far two judges agree about the same things."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from vla_rl.functional.intervals import normal_quantile


class Kappa(NamedTuple):
    """Cohen's kappa with its interval, and what it is made of."""

    kappa: float
    low: float
    high: float
    agreed: float  # share of things both judges gave the same label
    by_chance: float  # the same for judges that know nothing but how often each label is given
    things: int


def cohens_kappa(first: Sequence[str], second: Sequence[str], confidence: float = 0.95) -> Kappa:
    """Agreement beyond chance: 1 where the judges always agree, 0 where they agree as often as chance would.

        kappa = (p_o - p_e) / (1 - p_e),   p_e = sum over labels of n1(label) n2(label) / n^2

    Cohen 1960 (doi:10.1177/001316446002000104). The interval is the normal one with the large-sample standard error of
    Fleiss, Cohen and Everitt 1969 (doi:10.1037/h0028106), cut to [-1, 1]. Where both judges give one and the same label
    throughout, chance explains everything and kappa is not defined: NaN.

    Raises:
        ValueError: If the judges did not label the same number of things, or none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"expected two labels of each thing, one or more; got {len(first)} and {len(second)}"
        )
    n = len(first)
    pairs = Counter(zip(first, second, strict=True))
    rows, columns = Counter(first), Counter(second)
    labels = sorted(rows | columns)
    agreed = sum(pairs[label, label] for label in labels) / n
    chance = sum(rows[label] * columns[label] for label in labels) / n**2
    if rows == columns and len(labels) == 1:
        return Kappa(math.nan, -1.0, 1.0, agreed, chance, n)
    kappa = (agreed - chance) / (1 - chance)
    on = sum(
        pairs[label, label] / n * (1 - (rows[label] + columns[label]) / n * (1 - kappa)) ** 2
        for label in labels
    )
    off = (1 - kappa) ** 2 * sum(
        count / n * ((columns[a] + rows[b]) / n) ** 2 for (a, b), count in pairs.items() if a != b
    )
    variance = (on + off - (kappa - chance * (1 - kappa)) ** 2) / (n * (1 - chance) ** 2)
    half = normal_quantile(confidence) * math.sqrt(max(variance, 0.0))
    return Kappa(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), agreed, chance, n)
