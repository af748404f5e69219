"""Options of before on a command line: understood, with one line that names what they are called today."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vla_rl.config.old_names import OLD_FIELDS, Change


class OldOption(NamedTuple):
    """What stands for an option today."""

    prefix: str
    """Of the options of its group, "reward." for example."""
    change: str | Change
    """As in `OLD_FIELDS`."""
    many: bool
    """Whether it takes several words."""


def old_options(cls: Any, default: Any, prefix: str, flat: bool) -> Iterator[tuple[str, OldOption]]:
    """Every option of the dataclass that has another name today, or whose values have, by its old name."""
    hints = typing.get_type_hints(cls)
    for old, change in OLD_FIELDS.get(cls.__name__, {}).items():
        many = typing.get_origin(hints.get(old)) is tuple
        yield _option(prefix, old), OldOption(prefix, change, many)
    for entry in dataclasses.fields(cls):
        value = getattr(default, entry.name, None)
        inner = type(value) if dataclasses.is_dataclass(value) else hints[entry.name]
        if dataclasses.is_dataclass(inner):
            name = f"{prefix}{entry.name.replace('_', '-')}"
            yield from old_options(inner, value, "" if flat else f"{name}.", flat)


def with_new_names(words: Sequence[str], old: Mapping[str, OldOption], command: str) -> list[str]:
    """`words` with what is said otherwise today replaced, and one line about each on standard error."""
    replaced: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        known = old.get(name.replace("_", "-"))
        if known is None:
            replaced.append(word)
            continue
        given = [value] if equals else _values(waiting, known.many)
        said = _said_today(known, given)
        # another spelling of the same is not worth a line
        if said[0] != name.replace("_", "-") or said[1:] != given:
            before = " ".join([name, *given])
            print(f"vla-rl {command}: {before} is {' '.join(said)} now", file=sys.stderr)
        replaced += said
    return replaced


def _values(waiting: list[str], many: bool) -> list[str]:
    """Takes an option's words from the front of `waiting`."""
    given: list[str] = []
    while waiting and not waiting[0].startswith("-") and (many or not given):
        given.append(waiting.pop(0))
    return given


def _said_today(known: OldOption, given: list[str]) -> list[str]:
    if isinstance(known.change, str):
        return [_option(known.prefix, known.change), *given]
    words: list[str] = []
    for field, value in known.change(given if known.many else " ".join(given)).items():
        words.append(_option(known.prefix, field))
        words += (value if isinstance(value, list) else [value]) if given else []
    return words


def _option(prefix: str, field: str) -> str:
    return f"--{prefix}{field}".replace("_", "-")
