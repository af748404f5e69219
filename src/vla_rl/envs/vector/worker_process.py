"""The parent's end of one simulator process: start it, talk to it, notice that it died or hangs, kill it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from vla_rl.config.errors import UserError
from vla_rl.envs.vector.worker import WorkerSetup, serve
from vla_rl.runtime.children import Child

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class WorkerFacts(NamedTuple):
    """What the environments of a worker say about themselves."""

    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    action_dim: int
    proprio_dim: int


class WorkerLostError(Exception):
    """The process crashed or hung. The text says which, with its last words."""


class WorkerSilentError(WorkerLostError):
    """The process lives but did not answer in time: it hangs, or the machine is too busy for it."""

    def __init__(self, seconds: float, starting: bool) -> None:
        doing = " while it started or loaded a task" if starting else ""
        super().__init__(f"no answer for {seconds:g} seconds{doing}")
        self.starting = starting


class Worker(Protocol):
    """What `ProcessVectorEnv` asks of one of its workers; see `WorkerProcess` for what each method means."""

    @property
    def pid(self) -> int: ...

    def wait_ready(self) -> WorkerFacts: ...

    def send(self, command: str, ticket: int, work: tuple[Any, ...], *, idle: bool) -> None: ...

    def receive(self, timeout: float) -> tuple[Any, ...]: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


class WorkerProcess:
    """One running worker. Every method but `close` may raise WorkerLostError."""

    _start_timeout = 0.0  # seconds
    _loading = False  # whether it has said so last

    def __init__(self, setup: WorkerSetup, egl_device: int | None = None) -> None:
        """`egl_device` is EGL's number of the GPU to draw on, if one is chosen; the user's own goes before it."""
        environment = dict(os.environ)
        environment.update(dict.fromkeys(_ONE_THREAD, "1"))
        environment.setdefault("LP_NUM_THREADS", "0")
        if egl_device is not None:
            environment.setdefault("MUJOCO_EGL_DEVICE_ID", str(egl_device))
        self._child = Child(serve, environment=environment, descriptors=(setup.memory,))
        self._connection = self._child.connection
        self._start_timeout = setup.config.start_timeout
        self._loading = True
        self._since = time.monotonic()
        try:
            self._connection.send(setup)
        except OSError:
            pass  # it died at once; `wait_ready` will say how
        except BaseException:  # a factory that cannot be pickled, for one
            self._child.kill()
            raise

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_ready(self) -> WorkerFacts:
        """Block until the worker has made its environments. UserError if that is the user's to mend."""
        message = self.receive(self._start_timeout)
        return WorkerFacts(*message[1:])

    def send(self, command: str, ticket: int, work: tuple[Any, ...], *, idle: bool) -> None:
        """Post work; `idle` says that none is outstanding, so that the clock starts now."""
        if idle:
            self._since = time.monotonic()
        try:
            self._connection.send((command, ticket, work))
        except OSError as error:
            raise self._end(error) from error

    def _end(self, error: OSError) -> WorkerLostError:
        """Why a process ended that takes no more work. UserError where it has said that this is the user's to mend."""
        with suppress(EOFError, OSError):
            while self._connection.poll(0):
                message = self._connection.recv()
                if message[0] == "user_error":
                    raise UserError(message[1]) from error
                if message[0] == "failed":
                    return WorkerLostError(message[1])
        return WorkerLostError(self._child.obituary())

    def receive(self, timeout: float) -> tuple[Any, ...]:
        """The next message but signs of life. WorkerLostError if the process ended or was silent for too long.

        timeout: seconds of silence; starting, and loading a task for the first time, may take `env.start_timeout`.
        """
        while True:
            allowed = max(timeout, self._start_timeout) if self._loading else timeout
            remaining = self._since + allowed - time.monotonic()
            # poll also wakes up when the other end is closed; an answer that waits already is read even if late
            if not self._connection.poll(max(0.0, remaining)):
                raise WorkerSilentError(allowed, self._loading)
            try:
                message = self._connection.recv()
            except (EOFError, OSError) as error:
                raise WorkerLostError(self._child.obituary()) from error
            self._since = time.monotonic()
            self._loading = message[0] == "loading"
            if message[0] == "failed":
                raise WorkerLostError(message[1])
            if message[0] == "user_error":
                raise UserError(message[1])
            if message[0] not in ("busy", "loading"):
                return message

    def kill(self) -> None:
        """End it at once and reap it."""
        self._child.kill()

    def close(self) -> None:
        """Ask it to end, and kill it if it does not."""
        self._child.close(("close", 0, ()))
