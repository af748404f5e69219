"""The errors a user can cause or must hear about; the command line prints them as one line, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The message says what was expected, what came, and what to do."""


class ConfigError(UserError, ValueError):
    """A setting is out of range, unknown, or contradicts another one."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A phrase naming the nearest known words: " Did you mean 'mt5'?", or what there is to choose from."""
    choices = list(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    shown = ", ".join(choices[:12])
    return f" Known: {shown}{', ...' if len(choices) > 12 else ''}."


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def printable(text: str) -> str:
    """One line: what a terminal would obey or could not write is escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def in_lines(text: str) -> str:
    """`printable`, but for the ends of lines."""
    return "\n".join(map(printable, text.split("\n")))
