"""The parent's end of one simulator process: start it, talk to it, notice that it died, kill it.

A fresh interpreter through `subprocess`, not `multiprocessing`: nothing is forked (a fork after OpenGL or torch threads
have started hangs), and the user's main script, which may import torch, is not run again in every worker.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from vla_rl.config.errors import UserError
from vla_rl.envs.vector.worker import WorkerSetup

_START_TIMEOUT = 300.0  # seconds; a cold disk on a busy machine can take a minute
_CLOSE_TIMEOUT = 2.0
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from vla_rl.envs.vector.worker import main; main({pipe})"
)


class WorkerFacts(NamedTuple):
    """What the environments of a worker say about themselves."""

    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    action_dim: int
    proprio_dim: int


class WorkerLostError(Exception):
    """The process crashed or hung. The text says which, with its last words."""


class WorkerProcess:
    """One running worker. Every method but `close` may raise WorkerLostError."""

    def __init__(self, setup: WorkerSetup, egl_device: int | None = None) -> None:
        """`egl_device` is the GPU to draw on, where there are several; the user's own choice goes before it."""
        ours, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        environment = dict(os.environ)
        environment.update(dict.fromkeys(_ONE_THREAD, "1"))
        environment.setdefault("LP_NUM_THREADS", "0")
        if egl_device is not None:
            environment.setdefault("MUJOCO_EGL_DEVICE_ID", str(egl_device))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(path=sys.path, pipe=theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=(theirs.fileno(), setup.memory),
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone
            )
        self._connection = Connection(ours.detach())
        self._since = time.monotonic()
        try:
            self._connection.send(setup)
        except BrokenPipeError:
            pass  # it died at once; `wait_ready` will say how
        except BaseException:  # a factory that cannot be pickled, for one
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> WorkerFacts:
        """Block until the worker has made its environments. UserError if that is the user's to mend."""
        message = self.receive(_START_TIMEOUT)
        return WorkerFacts(*message[1:])

    def send(self, command: str, ticket: int, work: tuple[Any, ...], *, idle: bool) -> None:
        """Post work; `idle` says that none is outstanding, so that the clock starts now."""
        if idle:
            self._since = time.monotonic()
        try:
            self._connection.send((command, ticket, work))
        except OSError as error:
            raise WorkerLostError(self._obituary()) from error

    def receive(self, timeout: float) -> tuple[Any, ...]:
        """The next message but `busy`. WorkerLostError if the process ended or was silent for `timeout` seconds."""
        while True:
            remaining = self._since + timeout - time.monotonic()
            # poll also wakes up when the other end is closed; an answer that waits already is read even if late
            if not self._connection.poll(max(0.0, remaining)):
                raise WorkerLostError(f"no answer for {timeout:g} seconds")
            try:
                message = self._connection.recv()
            except (EOFError, OSError) as error:
                raise WorkerLostError(self._obituary()) from error
            self._since = time.monotonic()
            if message[0] == "failed":
                raise WorkerLostError(message[1])
            if message[0] == "user_error":
                raise UserError(message[1])
            if message[0] != "busy":
                return message

    def _obituary(self) -> str:
        """How the process ended, and what it last wrote to stderr."""
        try:
            code = self._process.wait(_CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            return "the process closed its pipe"
        self._stderr.seek(0)
        words = self._stderr.read()[-4000:].decode(errors="replace").strip()
        return f"the process ended with exit code {code}" + (f"\n{words}" if words else "")

    def kill(self) -> None:
        """End it at once and reap it."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._stderr.close()

    def close(self) -> None:
        """Ask it to end, and kill it if it does not."""
        try:
            self._connection.send(("close", 0, ()))
            self._process.wait(_CLOSE_TIMEOUT)
        except (OSError, subprocess.TimeoutExpired):
            pass  # killed below
        self.kill()
