"""Watches for reward hacking: does the dense reward rise while success falls?"""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import numpy as np

_LOG = logging.getLogger(__name__)


class RewardHackingMonitor:
    """Warns when the dense return rises while success falls: the policy then pleases the reward, not the task."""

    def __init__(self, windows: int = 20) -> None:
        self._windows = windows
        self._dense: deque[float] = deque(maxlen=windows)
        self._success: deque[float] = deque(maxlen=windows)
        self._warned = False

    def observe(self, dense_return: float, success: float) -> dict[str, float]:
        """One window's returns per ended episode. Gives the trends over the last windows, once there are enough."""
        self._dense.append(dense_return)
        self._success.append(success)
        if len(self._dense) < self._windows:
            return {}
        dense, success_trend = trend(list(self._dense)), trend(list(self._success))
        hacked = dense > SIGNIFICANT and success_trend < -SIGNIFICANT
        if hacked and not self._warned:
            _LOG.warning(
                "over the last %d iterations the dense reward rose while the simulator's success fell: the policy may "
                "be learning to please the reward model. Lower reward.weight, or refresh the reward model "
                "(reward.refresh_every)",
                self._windows,
            )
        self._warned = hacked
        return {
            "reward/trend_dense": dense,
            "reward/trend_success": success_trend,
            "reward/hacking": float(hacked),
        }

    def state(self) -> dict[str, Any]:
        return {"dense": list(self._dense), "success": list(self._success), "warned": self._warned}

    def restore(self, state: dict[str, Any]) -> None:
        self._dense = deque(state["dense"], maxlen=self._windows)
        self._success = deque(state["success"], maxlen=self._windows)
        self._warned = bool(state["warned"])


SIGNIFICANT = 2.0
"""A trend counts from this t value on."""


def trend(values: list[float]) -> float:
    """The t value of a straight line's slope through `values`: the slope over its standard error.

    0 for constant values; beyond plus or minus 2 a trend is unlikely to be chance, were the values independent.
    """
    y = np.asarray(values, dtype=np.float64)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(x @ y / (x @ x))
    left = y - y.mean() - slope * x
    error = np.sqrt(float(left @ left) / (len(y) - 2) / float(x @ x))
    if error < 1e-12:
        return 0.0 if abs(slope) < 1e-12 else float(np.copysign(1e3, slope))
    return slope / float(error)
