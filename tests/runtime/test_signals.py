"""Ctrl-C: once to stop with everything saved, twice to stop at once; SIGTERM and SIGHUP likewise."""

from __future__ import annotations

import os
import pickle
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vla_rl.runtime.signals import STOPPING, Stopped, graceful_stop, name_of, stop_at_once


@pytest.mark.parametrize("number", STOPPING)
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


def test_a_terminal_that_hangs_up_several_times_has_asked_once() -> None:
    with graceful_stop() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal_name == "SIGHUP"


def test_the_last_step_says_what_was_saved_and_by_which_signal() -> None:
    with graceful_stop() as stop:
        stop.end("nothing was asked")
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match="all of it") as caught:
            stop.end("all of it")
    stopped = caught.value
    assert isinstance(stopped, Stopped)
    assert (stopped.signal_name, stopped.exit_code) == ("SIGTERM", 143)
    back = pickle.loads(pickle.dumps(stopped))  # from a child process to its parent
    assert (back.number, str(back)) == (signal.SIGTERM, "all of it")
    assert [Stopped(n).exit_code for n in (signal.SIGINT, signal.SIGHUP)] == [130, 129]


def test_work_that_holds_nothing_is_given_up_at_once_and_not_begun_again() -> None:
    done = []

    def work() -> None:
        done.append("begun")
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("not reached")

    with graceful_stop() as stop:
        assert stop.run(lambda: done.append("before"))
        assert not stop.run(work)
        assert not stop.run(work)
        assert stop.requested
    assert done == ["before", "begun"]


def test_within_another_one_the_request_goes_to_the_outer() -> None:
    with graceful_stop() as outer, graceful_stop() as inner:
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.requested
        assert not inner.requested


def test_the_first_request_is_passed_on() -> None:
    heard: list[int] = []
    with graceful_stop(forward=heard.append) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
    assert heard == [signal.SIGHUP]


@pytest.mark.parametrize("number", STOPPING)
def test_where_nothing_is_to_be_saved_it_stops_where_it_is(number: signal.Signals) -> None:
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(True)

    with pytest.raises(Stopped) as caught, stop_at_once():
        work()
    assert caught.value.number == number
    assert cleaned


CLEANING_UP_FOR_EVER = """
import sys, time
from vla_rl.runtime.signals import stop_at_once
with stop_at_once():
    try:
        print("begun", flush=True)
        time.sleep(600)
    finally:
        print("cleaning", flush=True)
        time.sleep(600)
"""


def test_a_second_signal_ends_even_what_cleans_up_for_ever() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CLEANING_UP_FOR_EVER], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGHUP)  # of a terminal that closes meanwhile: no hurry
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM


def test_nohup_is_respected() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_at_once(), graceful_stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, former)


IN_A_TERMINAL = """
import sys, time
from pathlib import Path
from vla_rl.runtime.progress import note, progress
from vla_rl.runtime.signals import Stopped, graceful_stop
try:
    with graceful_stop("this step") as stop, progress("work", total=10**6, every=0.0) as bar:
        Path(sys.argv[1]).write_text("begun")
        while not stop:
            bar.advance(1)
            time.sleep(0.01)
        note("saving")
        print("saved", flush=True)
        Path(sys.argv[1]).write_text(f"saved after {stop.signal_name}")
        stop.end()
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""


def test_after_a_dropped_connection_everything_is_saved_although_nobody_can_be_told(
    tmp_path: Path,
) -> None:
    """The terminal is gone: writing to it fails, whatever a bar or a message tries to say."""
    told = tmp_path / "told"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", IN_A_TERMINAL, str(told)])
    while not told.exists():
        os.read(terminal, 1000)
    os.close(terminal)  # the kernel sends SIGHUP to the session
    _, status = os.waitpid(pid, 0)
    assert told.read_text() == "saved after SIGHUP"
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("waits", [True, False], ids=["saves", "at-once"])
def test_the_cursor_is_back_whatever_ends_a_bar(number: int, waits: bool, tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = IN_A_TERMINAL
    if not waits:
        code = code.replace('graceful_stop("this step")', "stop_at_once()").replace(
            "while not stop:", "while True:"
        ).replace("import Stopped, graceful_stop", "import Stopped, stop_at_once")  # fmt: skip
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**os.environ, "TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, "-c", code, str(told)], environment)
    shown = b""
    while b"\x1b[?25l" not in shown or not told.exists():
        shown += os.read(terminal, 1000)
    os.kill(pid, number)
    try:
        while part := os.read(terminal, 1000):
            shown += part
    except OSError:  # its end has been closed
        pass
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 128 + number
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


def test_signals_without_a_name_of_their_own_are_named_too() -> None:
    assert name_of(signal.SIGKILL) == "SIGKILL"
    assert name_of(signal.SIGRTMIN + 3) == "SIGRTMIN+3"  # a member of no enumeration
