"""What the tables of effects are made of: fields, and when they count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning"]
Condition = Callable[[Any], bool]


class Effect(NamedTuple):
    """Fields, the condition under which they count, and what to say where it does not hold."""

    fields: tuple[str, ...]
    """Dotted, as attributes of the command's configuration; a group stands for all of its fields."""
    counts: Condition
    because: str
    severity: Severity = "error"
    """error: what was asked for would not happen. warning: no difference to anything."""
