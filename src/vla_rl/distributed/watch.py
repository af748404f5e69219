"""How ranks hear that one of them has ended, also in the middle of a long window of play.

The first that ends too early says why, in the store where the ranks have met. A thread of each rank looks there every
second and interrupts its main thread. Without it a rank would notice at the next exchange only.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from torch._C._distributed_c10d import Store

from vla_rl.config.errors import UserError

_PERIOD = 1.0  # seconds between two looks of the thread, and below of a rank that waits
_LOOK = 0.05
_ENDED, _SPOKEN, _HEARD = "ended", "spoken", "heard"


class RankLostError(UserError):
    """Another rank has ended, or has not come to an exchange in time: this run cannot go on."""


class Watch:
    """The watch of one rank. Use as a context manager around the work, in the main thread."""

    def __init__(self, connect: Callable[[], Store], rank: int) -> None:
        """connect: another connection to the store: one is busy while somebody waits in it."""
        self._connect, self._rank = connect, rank
        self._store = connect()  # for `tell`, in whatever thread
        self._lost: RankLostError | None = None
        self._interrupts = threading.current_thread() is threading.main_thread()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._before = None

    def tell(self, reason: str) -> None:
        """Say why the run ends. The first reason counts."""
        with suppress(RuntimeError):  # the store has gone with rank 0: the others know
            self._store.compare_set(_ENDED, "", reason)

    def tell_own(self, error: BaseException) -> None:
        """Say that this rank ends by `error`, and look no more: it knows why the run ends."""
        self._over.set()
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        self.tell(f"rank {self._rank} on {socket.gethostname()}: {text}")

    def reason(self, wait: float = 0.0) -> str | None:
        """Why the run ends, as far as any rank has said it within `wait` seconds."""
        with suppress(RuntimeError):
            if self._comes([_ENDED], wait):
                return self._store.get(_ENDED).decode()
        return None

    def speak(self, size: int, wait: float) -> None:
        """Tell the others that the reason is shown to the user, and let them hear it before the store goes."""
        with suppress(RuntimeError):
            self._store.set(_SPOKEN, "1")
        self._comes([f"{_HEARD}/{rank}" for rank in range(1, size)], wait)

    def is_spoken(self, wait: float) -> bool:
        """Whether somebody has shown it, or does within `wait` seconds."""
        spoken = self._comes([_SPOKEN], wait)
        if spoken:
            with suppress(RuntimeError):
                self._store.set(f"{_HEARD}/{self._rank}", "1")
        return spoken

    def _comes(self, keys: list[str], wait: float) -> bool:
        """Whether the store has all `keys` within `wait` seconds."""
        until = time.monotonic() + wait
        while True:
            try:
                if self._store.check(keys):
                    return True
            except RuntimeError:
                return False
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK)

    def __enter__(self) -> Watch:
        if self._interrupts:
            self._before = signal.signal(signal.SIGUSR2, self._raise)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Look no more: the store may go."""
        self._over.set()
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._interrupts:
            signal.signal(signal.SIGUSR2, self._before or signal.SIG_DFL)

    def _look(self) -> None:
        try:
            store = self._connect()
        except RuntimeError:
            return self._interrupt("rank 0 cannot be reached any more")
        while not self._over.wait(_PERIOD):
            try:
                reason = store.get(_ENDED).decode() if store.check([_ENDED]) else None
            except RuntimeError:
                reason = "rank 0 cannot be reached any more: it has ended, or its machine has"
            if reason is not None:
                return self._interrupt(reason)
        return None

    def _interrupt(self, reason: str) -> None:
        self._lost = RankLostError(reason)
        if self._interrupts and not self._over.is_set():
            os.kill(os.getpid(), signal.SIGUSR2)

    def _raise(self, _sent: int, _frame: FrameType | None) -> None:
        lost, self._lost = self._lost, None
        if lost is not None and not self._over.is_set():
            raise lost
