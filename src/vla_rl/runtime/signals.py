"""Ctrl-C and SIGTERM end a run at the next safe point, with everything saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """`requested` turns true at the first signal; `signal_name` says which one it was."""

    def __init__(self, after: str) -> None:
        self.signal_name = ""
        self._after = after

    @property
    def requested(self) -> bool:
        return bool(self.signal_name)

    def __bool__(self) -> bool:
        return self.requested

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        # written past Python's buffers: a handler may run in the middle of a print
        line = f"\n{self.signal_name}: will save and stop after {self._after}; again to stop at once.\n"
        os.write(2, line.encode())


@contextmanager
def graceful_stop(after: str = "the current step") -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request, the second into KeyboardInterrupt.

        with graceful_stop() as stop:
            for iteration in range(n):
                ...
                if stop.requested:
                    save(); break

    The former handlers come back at the end. Outside the main thread, where Python allows no
    handlers, the request simply never comes.
    """
    stop = StopRequest(after)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._receive) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
