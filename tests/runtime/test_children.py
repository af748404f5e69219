"""Child processes: they end with their parent, leave signals to it, and say how they died."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from vla_rl.config import UserError
from vla_rl.runtime.child_pool import ChildPool
from vla_rl.runtime.children import Child, ChildLostError
from vla_rl.runtime.signals import STOPPING, Stopped, graceful_stop

HERE = str(Path(__file__).parent)


BEFORE: set[int] = set()


@pytest.fixture(autouse=True)
def other_children() -> None:
    """Those of other tests, which may have left some."""
    BEFORE.clear()
    BEFORE.update(child.pid for child in psutil.Process().children(recursive=True))


def children() -> list[int]:
    found = {child.pid for child in psutil.Process().children(recursive=True)}
    return sorted(found - BEFORE)


def alive(pids: list[int]) -> list[int]:
    """Those that still run after a while in which they may end."""
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, left = psutil.wait_procs(processes, timeout=60)
    found = [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    for process in found:
        process.kill()
    return [process.pid for process in found]


# -- what children do


def echo(connection: Connection) -> None:
    while True:
        connection.send(connection.recv())


def die(connection: Connection) -> None:
    print("the gearbox is full of sand", file=sys.stderr, flush=True)
    os.abort()


def hold_the_interpreter(connection: Connection) -> None:
    """No thread of this process runs again, so it cannot watch its parent by itself."""
    connection.send("begun")
    re.match("(a+)+$", "a" * 60 + "b")  # takes longer than the universe, and never lets go


def square(number: int) -> int:
    return number * number


def fail(kind: str) -> None:
    if kind == "user":
        raise UserError("please install the gearbox")
    if kind == "unsendable":
        raise UnsendableError(1, 2)
    os._exit(3)


class UnsendableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"cannot be made again from one argument: {one} {two}")


def lambda_of(_: int) -> object:
    return lambda: None


def pid_of_child() -> int:
    return os.getpid()


def work_until_asked(folder: str, name: str) -> str:
    with graceful_stop() as stop:
        Path(folder, name).write_text("begun")
        while not stop:
            time.sleep(0.01)
        Path(folder, name).write_text(f"saved after {stop.signal_name}")
        stop.end("saved")
    return "never"


def wait_for(*paths: Path) -> None:
    while not all(path.exists() and path.read_text() for path in paths):
        time.sleep(0.01)


# -- one child


def test_a_child_answers_and_is_gone_afterwards() -> None:
    child = Child(echo)
    child.connection.send({"a": 1})
    assert child.connection.recv() == {"a": 1}
    assert psutil.pid_exists(child.pid)
    child.kill()
    child.kill()
    assert not psutil.pid_exists(child.pid)
    assert children() == []


def test_how_it_died_is_told_with_its_last_words() -> None:
    child = Child(die)
    with pytest.raises((EOFError, ConnectionResetError)):
        child.connection.recv()
    words = child.obituary()
    child.kill()
    assert "exit code -6 (killed by SIGABRT)" in words
    assert "the gearbox is full of sand" in words


def test_signals_to_the_whole_group_are_the_parents_alone() -> None:
    """From the child's first instruction on: it may still be importing when they come."""
    early = Child(echo)
    for number in STOPPING:
        os.kill(early.pid, number)
    early.connection.send("a")
    assert early.connection.recv() == "a"
    for number in STOPPING:
        os.kill(early.pid, number)
    early.connection.send("b")
    assert early.connection.recv() == "b"
    early.kill()


PARENT = """
import sys, time
sys.path.insert(0, {here!r})
import test_children
from vla_rl.runtime.children import Child
from vla_rl.runtime.child_pool import ChildPool
idle, busy = Child(test_children.echo), Child(test_children.hold_the_interpreter)
assert busy.connection.recv() == "begun"
pool = ChildPool(1)
pooled = pool.submit(test_children.pid_of_child).result()
pool.submit(time.sleep, 600)  # a thread has started it, so the kernel does not see to its end
print(idle.pid, busy.pid, pooled, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_parent_whatever_they_are_at(number: int) -> None:
    program = textwrap.dedent(PARENT.format(here=HERE))
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3
    parent.send_signal(number)
    parent.wait()
    assert alive(pids) == []


# -- a pool


def test_calls_are_answered_each_by_its_own() -> None:
    with ChildPool(2) as pool:
        futures = [pool.submit(square, number) for number in range(7)]
        assert [future.result() for future in futures] == [0, 1, 4, 9, 16, 25, 36]
        pids = {pool.submit(pid_of_child).result() for _ in range(4)}
        assert len(pids) <= 2
        assert os.getpid() not in pids
    assert children() == []


def test_without_reuse_each_call_has_a_process_of_its_own() -> None:
    with ChildPool(1, reuse=False) as pool:
        assert len({pool.submit(pid_of_child).result() for _ in range(3)}) == 3
    assert children() == []


def test_what_a_function_raises_comes_back_and_the_pool_goes_on() -> None:
    with ChildPool(1) as pool:
        with pytest.raises(UserError, match="please install the gearbox") as caught:
            pool.submit(fail, "user").result()
        assert "in fail" in caught.value.__notes__[0]
        with pytest.raises(RuntimeError, match="cannot be made again from one argument: 1 2"):
            pool.submit(fail, "unsendable").result()
        with pytest.raises(RuntimeError, match="the result cannot leave its process"):
            pool.submit(lambda_of, 1).result()
        with pytest.raises(ChildLostError, match="exit code 3"):
            pool.submit(fail, "exit").result()
        assert pool.submit(square, 3).result() == 9


def test_leaving_by_an_error_ends_what_is_under_way(tmp_path: Path) -> None:
    futures: list[Future[str]] = []

    def work() -> None:
        with ChildPool(2) as pool:
            futures.extend(pool.submit(work_until_asked, str(tmp_path), n) for n in ("a", "b", "c"))
            wait_for(tmp_path / "a", tmp_path / "b")
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        work()
    assert children() == []
    assert not (tmp_path / "c").exists()
    with pytest.raises(ChildLostError, match="given up"):
        futures[0].result()


def test_a_stop_is_passed_on_and_every_child_saves(tmp_path: Path) -> None:
    with ChildPool(2) as pool:
        futures = [pool.submit(work_until_asked, str(tmp_path), n) for n in ("a", "b", "c")]
        wait_for(tmp_path / "a", tmp_path / "b")
        pool.pass_on(signal.SIGTERM)
        for future in futures:
            with pytest.raises(Stopped) as caught:
                future.result()
            assert caught.value.signal_name == "SIGTERM"
    assert [(tmp_path / n).read_text() for n in ("a", "b")] == ["saved after SIGTERM"] * 2
    assert not (tmp_path / "c").exists()  # it was not begun
