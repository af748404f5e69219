"""What simulators cost, apart: steps, images and resets."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from vla_rl.envs.env import Env
from vla_rl.envs.vector.shared_memory import SlotArrays
from vla_rl.runtime.call_times import CallTimes
from vla_rl.types import EpisodeSpec

KINDS = ("step", "image", "reset")


@runtime_checkable
class TimesItsWork(Protocol):
    """A `VectorEnv` that knows what its simulators cost."""

    def work_times(self) -> dict[str, CallTimes]:
        """Since it was last asked, over all simulators: seconds of a core by `KINDS`.

        The samples of `step` are simulator steps. A reset counts with its image; those that build a simulator do not.
        """
        ...


class TimedWork:
    """Does the work of slots and leaves what comes of it in the shared arrays."""

    def __init__(self, arrays: SlotArrays, horizon: int) -> None:
        self._arrays, self._horizon = arrays, horizon
        self._times = {kind: CallTimes() for kind in KINDS}
        # a core waits for a GPU that draws; where software draws, only its own processor time counts
        on_gpu = "MUJOCO_EGL_DEVICE_ID" in os.environ
        self._clock = time.perf_counter if on_gpu else time.process_time

    def reset(self, slot: int, env: Env, spec: EpisodeSpec, *, builds: bool = False) -> None:
        """`builds`: the simulator is made in this reset."""
        started = self._clock()
        env.reset(spec)
        self._arrays.write_reset(slot, env, self._horizon)
        if not builds:
            self._times["reset"].add(1, self._clock() - started)

    def step(self, slot: int, env: Env, actions: Float32[np.ndarray, "C A"]) -> None:
        started = self._clock()
        outcome = env.step(actions)
        moved = self._clock()
        self._arrays.write_step(slot, env, self._horizon, outcome)
        self._times["step"].add(outcome[3], moved - started)
        self._times["image"].add(1, self._clock() - moved)

    def take(self) -> list[float]:
        """The sums since this was last called, as numbers in a row."""
        return as_numbers({kind: times.take() for kind, times in self._times.items()})


def as_numbers(times: Mapping[str, CallTimes]) -> list[float]:
    """In a row, to be sent from process to process; `as_times` reads it."""
    return [number for kind in KINDS for number in vars(times[kind]).values()]


def as_times(rows: Sequence[Sequence[float]]) -> dict[str, CallTimes]:
    """What several `TimedWork.take` gave, added up."""
    total = {kind: CallTimes() for kind in KINDS}
    for row in rows:
        parts = np.reshape(np.asarray(row, np.float64), (len(KINDS), -1))
        for kind, part in zip(KINDS, parts.tolist(), strict=True):
            total[kind].merge(CallTimes(*part))
    return total
