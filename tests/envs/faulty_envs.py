"""Environments that fail on demand; workers import them by name."""

from __future__ import annotations

import faulthandler
import os
import time

import numpy as np

from vla_rl.config import EnvConfig, UserError
from vla_rl.envs.known_answers import ChainEnv

EXIT, HANG, RAISE, USER_ERROR, SEGFAULT, PRINT, DEFECT = 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7

_raised: list[float] = []  # in this process


def order(what: float, count: int = 1, first: float = 1.0) -> np.ndarray:
    """Actions (count, 1, 4) whose second number is the order."""
    actions = np.zeros((count, 1, 4), dtype=np.float32)
    actions[:, 0, 0], actions[:, 0, 1] = first, what
    return actions


class FaultyEnv(ChainEnv):
    """A chain that obeys the second number of its action."""

    def step(self, actions):
        what = round(float(actions[0, 1]), 3)
        if what == EXIT:
            os._exit(3)
        if what == HANG:
            time.sleep(3600)
        if what == RAISE and not _raised:  # not again when the episode is played again
            _raised.append(what)
            raise ValueError("the gearbox is full of sand")
        if what == DEFECT and self._state > 0:
            raise ValueError("the gearbox has lost its teeth")
        if what == USER_ERROR:
            raise UserError("please install the gearbox")
        if what == SEGFAULT:
            faulthandler._sigsegv()
        if what == PRINT:
            print("noise on stdout")
        return super().step(actions)


def make_faulty_envs(config: EnvConfig, count: int) -> list[FaultyEnv]:
    return [FaultyEnv(config) for _ in range(count)]


def make_unstartable_envs(config: EnvConfig, count: int) -> list[FaultyEnv]:
    raise RuntimeError("no licence for the gearbox")


def make_uninstalled_envs(config: EnvConfig, count: int) -> list[FaultyEnv]:
    raise UserError("Meta-World is not installed: pip install 'vla-rl[metaworld]'")
