"""Functions called in child processes, several at a time.

    with ChildPool(4) as pool:
        futures = [pool.submit(play, task) for task in tasks]
        results = [future.result() for future in futures]

`concurrent.futures.ProcessPoolExecutor`'s interface over the children of `vla_rl.runtime.children`, which end with
their parent; those of the standard library stay for ever when it is killed.
"""

from __future__ import annotations

import pickle
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

from vla_rl.runtime.children import Child, ChildLostError
from vla_rl.runtime.signals import Stopped

T = TypeVar("T")


class ChildPool:
    """Up to `size` children. Use as a context manager: leaving it by an error kills them, and what they were at."""

    def __init__(self, size: int, *, reuse: bool = True, keep_stderr: bool = True) -> None:
        """reuse: a child takes one call after the other; else each call has its own. keep_stderr: see `Child`."""
        self._reuse, self._keep_stderr = reuse, keep_stderr
        # a thread waits for each child
        self._threads = ThreadPoolExecutor(size, "child")
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._all: set[Child] = set()
        self._closed = False
        self._stopped_by: int | None = None

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call `function`, which must be importable by name, in a child.

        The future raises what the function raises, ChildLostError where its process dies, and Stopped where it ended
        or was not begun because of `pass_on`.
        """
        return self._threads.submit(self._call, function, arguments)

    def pass_on(self, number: int) -> None:
        """Tell the children to stop as if signal `number` had been sent to them; what waits is not begun.

        May be called by a signal handler: it takes no lock.
        """
        self._stopped_by = number
        for child in tuple(self._all):
            child.pass_on(number)

    def _call(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        if self._stopped_by is not None:
            raise Stopped(self._stopped_by)
        child = self._take()
        try:
            child.connection.send((function, arguments))
            ok, answer = child.connection.recv()
        except (EOFError, OSError) as error:
            words = child.obituary() if not self._closed else "the work was given up"
            self._end(child)
            if self._stopped_by is not None:
                raise Stopped(self._stopped_by) from error
            raise ChildLostError(words) from error
        except BaseException:
            self._end(child)
            raise
        if self._reuse:
            with self._lock:
                self._idle.append(child)
        else:
            self._end(child)
        if not ok:
            raise answer
        return answer

    def _take(self) -> Child:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        child = Child(serve_calls, keep_stderr=self._keep_stderr)
        with self._lock:
            self._all.add(child)
            closed, stopped_by = self._closed, self._stopped_by
        if closed:
            child.end()
        elif stopped_by is not None:
            child.pass_on(stopped_by)
        return child

    def _end(self, child: Child) -> None:
        with self._lock:
            self._all.discard(child)
        child.kill()

    def __enter__(self) -> ChildPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._threads.shutdown(wait=True)
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
        for child in idle:
            self._end(child)
        for child in busy:
            child.end()  # the thread that listens to it does the rest
        self._threads.shutdown(wait=True, cancel_futures=True)


def serve_calls(connection: Connection) -> None:
    """The child's side: one call after the other, until the parent closes."""
    while True:
        function, arguments = connection.recv()
        try:
            answer = (True, function(*arguments))
        except BaseException as error:
            error.add_note(f"in a child process:\n{traceback.format_exc()}")
            answer = (False, _sendable(error))
        try:
            connection.send(answer)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            connection.send((False, RuntimeError(f"the result cannot leave its process: {error}")))


def _sendable(error: BaseException) -> BaseException:
    """The error, or its text where it does not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
