"""Child processes of our own: the only place that starts them.

A child is a fresh interpreter through `subprocess`, not `multiprocessing`: nothing is forked (a fork after OpenGL or
torch threads have started hangs), and the user's main script, which may import torch, is not run again in every child.

- It ends with its parent, however that ends: it watches a pipe that the parent alone holds open, and on Linux the
  kernel kills it as well, even where an extension module holds the interpreter for ever.
- It ignores Ctrl-C, SIGTERM and SIGHUP, from its first instruction on: a batch system, a service manager or a terminal
  sends them to all processes of a job, and what becomes of the job is the parent's to decide. The parent may pass a
  signal on (`Child.pass_on`), which `graceful_stop` in the child heeds.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from vla_rl.runtime.signals import (
    STOPPING,
    block_signals,
    leave_signals_to_parent,
    name_of,
    receive_from_parent,
)

CLOSE_TIMEOUT = 2.0
"""Seconds in which a child that is asked to end may do so by itself."""
_LAST_WORDS = 4000  # characters of stderr
_PARENT_CHECK = 1000  # milliseconds
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from vla_rl.runtime.children import run_child; "
    "run_child({pipe}, {lifeline}, {parent})"
)
# before anything else, and without a module of ours: what a child owes its parent
_GUARD = """
import os, signal, sys
for number in {signals}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signals})
if {kill_with_parent}:
    import ctypes
    ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, {SIGKILL})
if os.getppid() != {parent}:
    os._exit(1)
"""

Serve = Callable[[Connection], None]
"""What a child does: talk through the connection, and return when it is done or the other end closes. Must be
importable by name."""


class ChildLostError(Exception):
    """The process ended before its work was done. The text says how, with its last words."""


def start_program(
    program: str,
    *,
    options: Sequence[str] = (),
    python: str | os.PathLike[str] = sys.executable,
    **keywords: Any,
) -> subprocess.Popen[Any]:
    """Start a Python program in a fresh interpreter that leaves signals to this process and ends with it.

    options: of the interpreter. python: which one. keywords: of `subprocess.Popen`. On Linux alone the kernel sees to
    its end, and only for a program that the main thread started; elsewhere it has to notice by itself, by the end of
    its input for example.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    guard = _GUARD.format(
        signals=tuple(map(int, STOPPING)),
        # the kernel's "parent" is the thread that started it, and only the main thread lives as long as we do
        kill_with_parent=main_thread and sys.platform == "linux",
        PR_SET_PDEATHSIG=_PR_SET_PDEATHSIG,
        SIGKILL=int(signal.SIGKILL),
        parent=os.getpid(),
    )
    # what a terminal sends reaches the parent alone; what is sent to everybody waits until the guard is there
    with block_signals():
        return subprocess.Popen(
            [os.fspath(python), *options, "-c", guard + program], start_new_session=True, **keywords
        )


def run_program(
    program: str,
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run such a program to its end. Raises `subprocess.TimeoutExpired` after `timeout` seconds, and ends it."""
    with start_program(
        program,
        options=options,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if environment is None else dict(environment),
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
        texts = [text.decode(errors="replace") for text in (out, err)]
        return subprocess.CompletedProcess(process.args, process.returncode, *texts)


class Child:
    """One running child process and the parent's end of its connection."""

    def __init__(
        self,
        serve: Serve,
        *,
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
        keep_stderr: bool = True,
    ) -> None:
        """Start it.

        environment: instead of this process's. descriptors: files it may use under the same numbers. keep_stderr: hold
        back what it writes to stderr, for its obituary; else it goes where ours goes.
        """
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        self._stderr = tempfile.TemporaryFile() if keep_stderr else None  # noqa: SIM115
        program = _PROGRAM.format(
            path=sys.path, pipe=theirs.fileno(), lifeline=lifeline, parent=os.getpid()
        )
        try:
            with theirs:
                self._process = start_program(
                    program,
                    stdin=subprocess.DEVNULL,
                    stderr=self._stderr,
                    pass_fds=(theirs.fileno(), lifeline, *descriptors),
                    env=None if environment is None else dict(environment),
                )
        except BaseException:
            ours.close()
            os.close(self._lifeline)
            raise
        finally:
            os.close(lifeline)
        self.connection = Connection(ours.detach())
        try:
            self.connection.send(serve)
        except OSError:
            pass  # it died at once; who listens to it will hear how
        except BaseException:  # what cannot be pickled, for one
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def pass_on(self, number: int) -> None:
        """Tell the child to stop, as if signal `number` had been sent to it."""
        with suppress(OSError):
            os.write(self._lifeline, bytes([number]))

    def obituary(self) -> str:
        """How the process ended, and what it last wrote to stderr."""
        try:
            code = self._process.wait(CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            return "the process closed its pipe"
        words = ""
        if self._stderr is not None and not self._stderr.closed:
            self._stderr.seek(0)
            words = self._stderr.read()[-_LAST_WORDS:].decode(errors="replace").strip()
        killed = f" (killed by {name_of(-code)})" if code < 0 else ""
        return f"the process ended with exit code {code}{killed}" + (f"\n{words}" if words else "")

    def end(self) -> None:
        """End the process at once; who listens to the connection hears that it has closed."""
        self._process.kill()

    def kill(self) -> None:
        """End it at once, reap it, and close everything. May be called twice."""
        self.end()
        self._process.wait()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        self.connection.close()
        if self._stderr is not None:
            self._stderr.close()

    def close(self, farewell: Any = None) -> None:
        """Ask it to end with a last message, and kill it if it does not."""
        with suppress(OSError, subprocess.TimeoutExpired):
            self.connection.send(farewell)
            self._process.wait(CLOSE_TIMEOUT)
        self.kill()


def run_child(pipe: int, lifeline: int, parent: int) -> None:
    """Entry point of the process: what `Child` starts calls this and nothing else."""
    faulthandler.enable()
    leave_signals_to_parent()
    threading.Thread(target=_watch, args=(lifeline, parent), daemon=True).start()
    connection = Connection(pipe)
    status = 1
    try:
        serve: Serve = connection.recv()
        serve(connection)
        status = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone or has closed us
    except KeyboardInterrupt:
        pass  # the parent has told us to stop, at a moment when nobody was there to answer
    except BaseException:
        traceback.print_exc()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # not sys.exit: OpenGL drivers may hang or complain while the interpreter takes itself apart
    os._exit(status)


def _watch(lifeline: int, parent: int) -> None:
    """End this process when its parent has gone, even in the middle of an endless simulation."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    # a parent that died before this began has left us to another one already
    while os.getppid() == parent:
        if poll.poll(_PARENT_CHECK):
            number = os.read(lifeline, 1)
            if not number:
                break
            receive_from_parent(number[0])
    os._exit(1)
