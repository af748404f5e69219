"""A simulator host: a process, on whatever machine, that holds a share of a learner's environments.

Inside it our own vector environment drives them, so that a simulator that crashes or hangs is dealt with there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from vla_rl.config.env import EnvConfig
from vla_rl.envs.env import EpisodesLostError, Snapshot
from vla_rl.envs.vector.make import open_vector_env
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.envs.vector.work_times import as_numbers
from vla_rl.envs.vector.worker import MakeEnvs
from vla_rl.envs.vector.worker_process import WorkerFacts
from vla_rl.types import EpisodeSpec, StepResult


class HostSetup(NamedTuple):
    """What a host is to simulate."""

    config: EnvConfig  # of its share
    make_envs: MakeEnvs
    in_process: bool
    slots: tuple[int, ...]  # numbers of its environments with the learner
    number: int  # among the learner's hosts
    count: int


class HostFacts(NamedTuple):
    """What a host says about itself."""

    worker: WorkerFacts
    pid: int


class Played(NamedTuple):
    """What came of a command; slots are numbered as the learner does."""

    slots: Sequence[int]
    result: StepResult
    infrastructure_errors: int  # in the host, so far


class SimulatorHost:
    """The host's side. Each method but `open` and `memory_bytes` is a command of `Worker.send`."""

    def __init__(self, setup: HostSetup) -> None:
        self._setup = setup
        self._envs: ProcessVectorEnv | SerialVectorEnv | None = None
        self._place = {slot: place for place, slot in enumerate(setup.slots)}

    def open(self) -> HostFacts:
        """Start the simulators. UserError where they are not installed or cannot start."""
        setup = self._setup
        envs = self._envs = open_vector_env(
            # as if all hosts were on one machine, so that they share its GPUs for drawing
            setup.config, setup.make_envs, setup.in_process, setup.number, setup.count,
        )  # fmt: skip
        proprio_dim = envs.proprio_dim
        return HostFacts(
            WorkerFacts(envs.tasks, envs.instructions, envs.action_dim, proprio_dim), os.getpid()
        )

    @property
    def _opened(self) -> ProcessVectorEnv | SerialVectorEnv:
        assert self._envs is not None
        return self._envs

    def reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec]) -> Played:
        self._opened.post_reset(self._places(slots), [EpisodeSpec(*spec) for spec in specs])
        return self._played(slots)

    def step(self, slots: Sequence[int], actions: Float32[np.ndarray, "S C A"]) -> Played:
        self._opened.post_step(
            self._places(slots), actions.copy()
        )  # Ray gives what cannot be changed
        return self._played(slots)

    def restore(self, slots: Sequence[int], snapshots: Sequence[Snapshot]) -> Played:
        self._opened.post_restore(self._places(slots), deepcopy(snapshots))
        return self._played(slots)

    def snapshot(self, slots: Sequence[int]) -> list[Snapshot] | None:
        """None where a simulator process was lost."""
        try:
            return self._opened.snapshot(self._places(slots))
        except EpisodesLostError:
            return None

    def dense_rewards(self, slots: Sequence[int]) -> list[float] | None:
        """None where a simulator process was lost."""
        try:
            return self._opened.dense_rewards(self._places(slots)).tolist()
        except EpisodesLostError:
            return None

    def work_times(self, *_: object) -> list[float]:
        """As numbers in a row, see `work_times.as_numbers`."""
        return as_numbers(self._opened.work_times())

    def memory_bytes(self) -> int:
        return self._opened.memory_bytes()

    def _places(self, slots: Sequence[int]) -> list[int]:
        return [self._place[slot] for slot in slots]

    def _played(self, slots: Sequence[int]) -> Played:
        envs = self._opened
        return Played(slots, envs.wait(self._places(slots)), envs.infrastructure_errors)
