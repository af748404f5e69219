"""The watch over the dense reward: what a trend is, and when it warns."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from vla_rl.rewards.hacking_monitor import RewardHackingMonitor, trend


def test_a_trend_is_a_slope_over_its_error() -> None:
    # y = 0, 1, 2, 4: slope 1.3, residuals 0.2, -0.1, -0.4, 0.3, error sqrt(0.3 / 2 / 5)
    assert trend([0, 1, 2, 4]) == pytest.approx(1.3 / np.sqrt(0.03))
    assert trend([3.0] * 6) == pytest.approx(0, abs=1e-9)
    assert trend([3, 2, 1, 0]) < -100


def test_the_watch_warns_once_when_reward_and_success_part(caplog) -> None:
    watch = RewardHackingMonitor(windows=6)
    rng = np.random.default_rng(0)
    with caplog.at_level(logging.WARNING):
        for step in range(6):
            healthy = watch.observe(0.1 * step, 0.1 * step + 0.01 * rng.random())
        assert healthy["reward/hacking"] == 0
        for step in range(8):
            hacked = watch.observe(1 + 0.1 * step, 0.5 - 0.05 * step + 0.01 * rng.random())
    assert hacked["reward/hacking"] == 1
    assert sum("please the reward model" in message for message in caplog.messages) == 1
