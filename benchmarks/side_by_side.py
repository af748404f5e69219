"""Two ways of doing the same, measured in alternation: whatever else the machine does hits both."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

import numpy as np
import psutil


class Side(Protocol):
    """One of the two."""

    name: str

    def turn(self, rng: np.random.Generator) -> int:
        """Do some work; returns how much was done."""
        ...


class Rates(NamedTuple):
    """Work per second of either side, and their ratio in each slice."""

    ours: float
    theirs: float
    slices: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def play(side: Side, seconds: float, rng: np.random.Generator) -> tuple[int, float]:
    """Work done and the seconds it took: at least `seconds`, and at least one turn."""
    done, start = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - start < seconds:
        done += side.turn(rng)
    return done, time.perf_counter() - start


def alternate(ours: Side, theirs: Side, seconds: float, slices: int) -> Rates:
    """Let both work for `seconds` each, in `slices` parts that take turns."""
    rng = np.random.default_rng(1)
    done, spent, ratios = [0, 0], [0.0, 0.0], []
    for _ in range(slices):
        rates = []
        for number, side in enumerate((ours, theirs)):
            work, took = play(side, seconds / slices, rng)
            done[number] += work
            spent[number] += took
            rates.append(work / took)
        ratios.append(rates[0] / rates[1])
    return Rates(done[0] / spent[0], done[1] / spent[1], tuple(ratios))


def memory_bytes() -> int:
    """Proportional set size of this process and its children."""
    me = psutil.Process()
    return sum(process.memory_full_info().pss for process in [me, *me.children(recursive=True)])
