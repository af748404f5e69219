"""Checks the annotations of the package while the tests run; `--jaxtyping-packages` in pyproject.toml names this.

Everywhere the shapes and kinds of arrays, so that a test may put a double in the place of anything else; in the
packages that are pure mathematics, every type. Only the first calls of each test are checked: a test that trains a
policy calls the same functions a hundred thousand times, which takes several times as long with checks.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray, config

EVERY_TYPE = ("vla_rl.functional", "vla_rl.types", "vla_rl.policies")
CALLS_A_TEST = 4000


class Budget:
    """Calls that are still to be checked in this test."""

    left = 0


def begin_test() -> None:
    Budget.left = CALLS_A_TEST
    config.update("jaxtyping_disable", False)


def stop() -> None:
    config.update("jaxtyping_disable", True)


def check(function: Callable) -> Callable:
    """The type checker that jaxtyping calls."""
    if not function.__module__.startswith(EVERY_TYPE):
        hints = function.__annotations__
        arrays = {name: hint if is_array(hint) else Any for name, hint in hints.items()}
        if all(hint is Any for hint in arrays.values()):
            return function
        function.__annotations__ = arrays
    checked = beartype(function)

    @functools.wraps(checked)
    def counted(*args: Any, **kwargs: Any) -> Any:
        Budget.left -= 1
        if Budget.left < 0:
            stop()
        return checked(*args, **kwargs)

    return counted


def is_array(hint: object) -> bool:
    """Whether an annotation speaks of an array: `Float[Tensor, " B"]`, `tuple[UInt8[ndarray, "H W 3"], ...] | None`."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(is_array(part) for part in get_args(hint))
