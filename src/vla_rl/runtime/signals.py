"""Ctrl-C, SIGTERM and a terminal that hangs up (SIGHUP) end a command alike.

Where there is something to save, `graceful_stop` makes the first signal a request, which the work heeds at its next
safe point. Elsewhere `stop_at_once` raises `Stopped` where the program is, so that every `finally` is run: children are
killed, partial folders removed, the terminal is put right. SIGHUP is left alone where it was ignored from the start
(nohup).

A child process (`vla_rl.runtime.children`) ignores all three, since batch systems, service managers and terminals send
them to a whole group at once: its parent decides, and may pass a request on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a command to end."""
_PASSED_ON = signal.SIGUSR1  # how a child hears within itself what its parent has passed on
_SHOW_CURSOR = b"\x1b[?25h"

_passed_on: int | None = None
"""The signal that the parent has passed on; stays None in a process without one."""
_is_child = False
_active: StopRequest | None = None


def name_of(number: int) -> str:
    """SIGTERM, or SIGRTMIN+3 for one of those that have no names of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


class Stopped(KeyboardInterrupt):
    """A signal has ended the work. The text, where there is one, says what was saved and how to go on."""

    def __init__(self, number: int = signal.SIGINT, message: str = "") -> None:
        super().__init__(message)
        self.number = number

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, str]]:
        return Stopped, (self.number, str(self))

    @property
    def signal_name(self) -> str:
        return name_of(self.number)

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + self.number


class _GivenUp(KeyboardInterrupt):
    """Leaves the work that `StopRequest.run` was given."""


class StopRequest:
    """`requested` turns true at the first signal; `signal_name` says which one it was."""

    def __init__(
        self, after: str = "the current step", forward: Callable[[int], None] | None = None
    ) -> None:
        self.number: int | None = None
        self._after = after
        self._forward = forward
        self._gives_up = False

    @property
    def signal_name(self) -> str:
        return "" if self.number is None else name_of(self.number)

    @property
    def requested(self) -> bool:
        return self.number is not None

    def __bool__(self) -> bool:
        return self.requested

    def run(self, work: Callable[[], object]) -> bool:
        """Do `work`, which holds nothing worth saving, and give it up at the first signal; whether it came to its end.

        It is not begun where a stop is requested already.
        """
        self._gives_up = True
        try:
            if self.requested:
                return False
            work()
        except _GivenUp:
            return False
        finally:
            self._gives_up = False
        return True

    def end(self, message: str = "") -> None:
        """Raise `Stopped`, with this message, if a stop was requested: the last step, after saving."""
        if self.number is not None:
            raise Stopped(self.number, message)

    def _receive(self, sent: int, _frame: FrameType | None) -> None:
        number = _meant(sent)
        if number == signal.SIGHUP:
            _leave_dead_terminals()
        if self.requested:
            # a terminal that closes sends it two or three times
            if number == signal.SIGHUP:
                return
            raise Stopped(number)
        self.number = number
        if not _is_child:
            what = "stopping" if self._gives_up else f"will save and stop after {self._after}"
            _say(f"\n{self.signal_name}: {what}; again to stop at once.\n")
        if self._forward is not None:
            self._forward(number)
        if self._gives_up:
            raise _GivenUp


@contextmanager
def graceful_stop(
    after: str = "the current step", forward: Callable[[int], None] | None = None
) -> Iterator[StopRequest]:
    """Turn the first signal into a request, the second into `Stopped`, which is a KeyboardInterrupt.

        with graceful_stop() as stop:
            for iteration in range(n):
                ...
                if stop.requested:
                    save(); break
            stop.end()

    forward: called with the number of the first signal, to pass it on to children.
    The former handlers come back at the end. Inside another `graceful_stop` the request goes to the outer one. Outside
    the main thread, where Python allows no handlers, it never comes.
    """
    global _active
    stop = StopRequest(after, forward)
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with _handlers(stop._receive):
        _active = stop
        try:
            yield stop
        finally:
            _active = None


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Raise `Stopped` at the first signal; a second one ends the process without further ado (children end with it)."""
    stopping = False

    def receive(sent: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        number = _meant(sent)
        if number == signal.SIGHUP:
            _leave_dead_terminals()
        if not stopping:
            stopping = True
            raise Stopped(number)
        if number != signal.SIGHUP:
            show_cursor()
            os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handlers(receive):
        yield


@contextmanager
def block_signals() -> Iterator[None]:
    """Hold back the signals that end a command; a process started meanwhile begins with them held back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """For a child process, which ignores what ends a command: stop when the parent says so (`receive_from_parent`)."""
    global _is_child
    _is_child = True
    signal.signal(_PASSED_ON, _raise_stopped)


def receive_from_parent(number: int) -> None:
    """For a child process, in any thread: the parent passes on a signal, as if it had come here."""
    global _passed_on
    _passed_on = number
    os.kill(os.getpid(), _PASSED_ON)


def show_cursor() -> None:
    """Make the cursor of the terminal visible again, which a progress bar hides."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)


def _raise_stopped(sent: int, _frame: FrameType | None) -> None:
    number = _meant(sent)
    if number == signal.SIGHUP:
        _leave_dead_terminals()
    raise Stopped(number)


def _meant(sent: int) -> int:
    return _passed_on if sent == _PASSED_ON and _passed_on is not None else sent


@contextmanager
def _handlers(receive: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    numbers = [_PASSED_ON] if _is_child else list(STOPPING)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and not _is_child:
        numbers.remove(signal.SIGHUP)  # nohup
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _say(text: str) -> None:
    # written past Python's buffers: a handler may run in the middle of a print
    with suppress(OSError):
        os.write(2, text.encode())


def _leave_dead_terminals() -> None:
    """Point stdout and stderr to nowhere where their terminal is gone: every write to it would fail from now on."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
