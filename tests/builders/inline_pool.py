"""A pool of children without children: each call is made at once, in this process, where a test can look at it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class InlinePool:
    """Called as `vla_rl.runtime.child_pool.ChildPool` is."""

    def __init__(self, size: int, **_: Any) -> None:
        assert size >= 1

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def pass_on(self, number: int) -> None:
        raise AssertionError("nothing is sent a signal here")

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None:
        pass
