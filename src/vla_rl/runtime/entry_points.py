"""What packages of others add: entry points of a group, loaded when something is asked for that is not known here.

    [project.entry-points."vla_rl.benchmarks"]      # in the other package's pyproject.toml
    pusher = "pusher_sim.vla_rl:PUSHER"

An entry point that cannot be loaded is said once, by its package, and harms nobody else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, TypeVar

from vla_rl.config.errors import printable

T = TypeVar("T")
LOG = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """The entry points of a group, by their names."""

    found: dict[str, Any]
    broken: dict[str, str]
    """A line each: what is wrong, and in which package."""


@cache
def load_entry_points(group: str, kind: type[Any], what: str) -> Loaded:
    """Load those of `group`, once a process. `kind`: what each must be, or a function without arguments that gives one.

    what: for the line about one that is something else, for example "a vla_rl.Benchmark".
    """
    loaded = Loaded({}, {})
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        fault = _load(point, kind, what, loaded.found)
        if fault:
            line = printable(
                f"the entry point {point.name!r} of {group}, {_origin(point)}, {fault}"
            )
            loaded.broken[point.name] = line
            LOG.warning("%s; the others are not affected", line)
    return loaded


def add_entry_points(
    registry: MutableMapping[str, T], group: str, kind: type[T], what: str
) -> dict[str, str]:
    """Add those of `group` to a registry, whose own entries stay as they are; returns what is broken, a line each."""
    loaded = load_entry_points(group, kind, what)
    for name, value in loaded.found.items():
        registry.setdefault(name, value)
    return loaded.broken


def _load(point: EntryPoint, kind: type[Any], what: str, found: dict[str, Any]) -> str:
    """Load one into `found`; returns what is wrong with it."""
    try:
        value = point.load()
        if not isinstance(value, kind) and isinstance(value, Callable):
            value = value()
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a module that calls sys.exit() is one more broken package
        return f"does not load: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if not isinstance(value, kind):
        return f"is a {type(value).__name__}: expected {what}, or a function that returns one"
    if point.name in found:
        return "has the name of another one, which counts: one of the two packages has to change it"
    found[point.name] = value
    return ""


def _origin(point: EntryPoint) -> str:
    package = point.dist.name if point.dist is not None else "an unknown package"
    return f"{point.value!r} of the package {package}"
