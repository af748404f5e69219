"""Several environments of one process take turns in one simulator per task.

A simulator with its meshes and textures takes tens or hundreds of megabytes, its state some kilobytes. So each process
keeps one simulator per task; an environment whose turn it is finds its own state loaded, and the one it displaces is
saved first.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar


class SharedSimulator(Protocol):
    """What a simulator must offer to be shared. `owner` is whoever's state is loaded at the moment."""

    owner: object | None

    def save(self) -> Any: ...

    def load(self, state: Any) -> None: ...

    def close(self) -> None: ...


S = TypeVar("S", bound=SharedSimulator)


class SimulatorPool(Generic[S]):
    """The simulators of this process, one per task, built when first played."""

    def __init__(self, build: Callable[[str], S]) -> None:
        self._build = build
        self._simulators: dict[str, S] = {}
        self.users = 0

    def get(self, task: str) -> S:
        if task not in self._simulators:
            self._simulators[task] = self._build(task)
            return_freed_memory()
        return self._simulators[task]

    def close(self) -> None:
        for simulator in self._simulators.values():
            simulator.close()
        self._simulators.clear()


class SimulatorUser(Generic[S]):
    """The part of an environment that takes turns with others."""

    def __init__(self, pool: SimulatorPool[S]) -> None:
        self._pool = pool
        self._pool.users += 1
        self._simulator: S | None = None
        self._parked: Any = None
        self._closed = False

    def _move_to(self, task: str) -> S:
        """Leave the present simulator for that of `task`, whose state is the caller's to set at once."""
        self._leave()
        simulator = self._pool.get(task)
        _park_owner(simulator, self)
        return simulator

    def _take(self, simulator: S) -> None:
        """Say that the state in `simulator` is this environment's from now on."""
        simulator.owner = self
        self._simulator = simulator

    def _own(self) -> S:
        """The simulator with this environment's state in it."""
        simulator = self._simulator
        if simulator is None:
            raise RuntimeError("reset the environment first")
        if simulator.owner is not self:
            _park_owner(simulator, self)
            assert self._parked is not None
            simulator.load(self._parked)
            simulator.owner, self._parked = self, None
        return simulator

    def _leave(self) -> None:
        if self._simulator is not None and self._simulator.owner is self:
            self._simulator.owner = None
        self._simulator, self._parked = None, None

    def close(self) -> None:
        """Leave the simulators; the last user of a pool frees them."""
        if self._closed:
            return
        self._closed = True
        self._leave()
        self._pool.users -= 1
        if self._pool.users == 0:
            self._pool.close()


def _park_owner(simulator: SharedSimulator, user: object) -> None:
    owner = simulator.owner
    if isinstance(owner, SimulatorUser) and owner is not user:
        owner._parked = simulator.save()
    simulator.owner = None


def return_freed_memory() -> None:
    """Reading a model leaves up to hundreds of megabytes of freed fragments, which glibc keeps unless told not to."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
