"""The form of every fault: file, key, what was expected, what came, what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from vla_rl.config.errors import UserError, printable

REMEDY = "Fix the file or fetch it again."
PLAIN_KEY = re.compile(r"[A-Za-z_][\w-]{0,59}")
SHOWN_LENGTH = 60
SHOWN_KEYS = 8


def fault(
    source: str | Path, key: str, expected: str, found: object, remedy: str = REMEDY
) -> UserError:
    """The error for one value: "<source>: <key>: expected <expected>, got <found>. <remedy>".

    found: the value itself, or what to say of it as a `Phrase`. key: its dotted path, empty for the whole file.
    """
    said = found if isinstance(found, Phrase) else shown(found)
    where = f"{source}: {key}" if key else f"{source}"
    todo = f". {remedy}" if remedy else ""
    return UserError(printable(f"{where}: expected {expected}, got {said}{todo}"))


class Phrase(str):
    """Words about a value, to be shown as they are."""

    __slots__ = ()


def dotted(path: Iterable[str | int]) -> str:
    """`features["observation.state"].shape[0]` for a path of keys and positions."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{_quoted(step)}]"
    return text


def shown(value: object) -> str:
    """A JSON value in a few printable words that fit on a line."""
    if isinstance(value, dict):
        if not value:
            return "an empty object"
        more = ", ..." if len(value) > SHOWN_KEYS else ""
        return (
            f"an object with {', '.join(_quoted(str(key)) for key in [*value][:SHOWN_KEYS])}{more}"
        )
    if isinstance(value, list | tuple):
        if not value:
            return "an empty list"
        plain = len(value) <= SHOWN_KEYS and not any(isinstance(v, list | dict) for v in value)
        short = f"[{', '.join(map(shown, value))}]" if plain else ""
        return short if 0 < len(short) <= SHOWN_LENGTH else f"a list of {len(value)}"
    if isinstance(value, str):
        return _quoted(value)
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)
    if isinstance(value, int):
        # Python itself refuses to write out a huge integer
        return str(value) if abs(value) < 10**40 else "an integer of more than 40 digits"
    return _cut(repr(value))


def _quoted(text: str) -> str:
    return f'"{_cut(text)}"'


def _cut(text: str) -> str:
    return printable(text if len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - 3]}...")
