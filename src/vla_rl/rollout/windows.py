"""Windows of play, one after the other: each when it is due, or one ahead of the learning."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from dataclasses import replace
from types import TracebackType

from vla_rl.config.rollout import RolloutConfig
from vla_rl.policies.policy import Policy
from vla_rl.rollout.collector import Collected, Collector
from vla_rl.rollout.engine import Engine

_GIVE_UP = 5.0  # seconds that a window which is of no use any more gets to end


class Windows:
    """Plays windows with the newest weights that there are when a window begins.

        collected = windows.take(iteration)
        windows.begin(iteration + 1)      # plays on in a thread while `collected` is learned

    Weights change between two windows alone, so that a run gives the same numbers however long learning takes.
    """

    def __init__(
        self, collector: Collector, engine: Engine, policy: Policy, config: RolloutConfig
    ) -> None:
        self.collector, self.engine, self.policy, self.config = collector, engine, policy, config
        self._version: int | None = None
        self._begun: Future[Collected] | None = None

    @property
    def ahead(self) -> bool:
        """Whether a window is being played that nobody has taken yet."""
        return self._begun is not None

    def take(self, iteration: int) -> Collected:
        """The window of this iteration; it is played now unless it was begun before."""
        if self._begun is None:
            self._renew(iteration)
            return self._play(iteration)
        begun, started = self._begun, time.perf_counter()
        while not wait([begun], timeout=1.0).done:  # in short waits, so that a signal is heard
            pass
        self._begun = None
        return replace(begun.result(), waited=time.perf_counter() - started)

    def begin(self, iteration: int) -> None:
        """Play the window of `iteration` in a thread, with the weights that the iteration before begins with."""
        self._renew(iteration - 1)
        self._begun = Future()
        threading.Thread(
            target=self._fulfil, args=(self._begun, iteration), name="window", daemon=True
        ).start()

    def _fulfil(self, future: Future[Collected], iteration: int) -> None:
        try:
            future.set_result(self._play(iteration))
        except BaseException as error:
            future.set_exception(error)

    def _renew(self, version: int) -> None:
        if version != self._version:
            self.engine.renew(self.policy, version)
            self._version = version

    def _play(self, iteration: int) -> Collected:
        return self.collector.collect(self.config.turns, self.config.temperature, iteration)

    def __enter__(self) -> Windows:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nobody wants the window that is being played any more."""
        if self._begun is None:
            return
        self.collector.given_up.set()
        wait([self._begun], timeout=_GIVE_UP)
