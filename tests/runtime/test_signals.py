"""Ctrl-C: once to stop with everything saved, twice to stop at once."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from vla_rl.runtime.signals import graceful_stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_says_so(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with graceful_stop("this iteration") as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal_name == number.name
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert lines == [
        f"{number.name}: will save and stop after this iteration; again to stop at once."
    ]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_interrupts(second: signal.Signals) -> None:
    with graceful_stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), second)


def test_former_handlers_come_back_even_after_an_error() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    inside = []

    def work() -> None:
        with graceful_stop():
            inside.extend(signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM))
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        work()
    assert not set(inside) & set(before)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_there_is_no_handler_and_no_error() -> None:
    seen: list[bool] = []
    handler = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with graceful_stop() as stop:
            seen.append(stop.requested or signal.getsignal(signal.SIGINT) is not handler)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
