"""Where the seconds of an iteration go, on every rank."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from vla_rl.distributed.world import SingleProcess, World
from vla_rl.rollout import Collected
from vla_rl.rollout.metrics import PHASES


class Phases:
    """Times the parts of one iteration after the other."""

    def __init__(self, world: World = SingleProcess()) -> None:
        self._world = world
        self.begin()

    def begin(self) -> None:
        """An iteration begins."""
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._world.lap()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done inside counts as `name`, but for what it waits for other ranks."""
        self._add(self._world.lap())
        began = time.perf_counter()
        yield
        met = self._world.lap()
        self._add(met | {name: time.perf_counter() - began - sum(met.values())})

    def _add(self, seconds: dict[str, float]) -> None:
        for name, spent in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + spent

    def wall_seconds(self) -> float:
        """Since the iteration began."""
        return time.perf_counter() - self._began

    def of_ranks(self, own: Collected) -> list[dict[str, float]]:
        """For each rank: its seconds by `PHASES`, and what it has played. own: what this rank has."""
        self._add(self._world.lap())
        if own.waited is None:
            self._add({name: own.seconds[name] for name in ("simulate", "infer")})
        else:  # played beside the learning
            self._add({"wait": own.waited})
        mine = self._seconds
        shares = {name: mine.get(name, 0.0) for name in PHASES}
        shares["other"] = self.wall_seconds() - sum(mine.values())
        shares["turns"] = float(own.rollout.num_turns)
        shares["simulator_steps"] = float(own.simulator_steps)
        return self._world.gather(shares)
