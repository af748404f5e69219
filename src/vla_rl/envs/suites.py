"""Which suites an expression names: one, a union of several, or a name for such a union.

    suite_parts("mt10+libero-object:0,1,2")      # ("mt10", "libero-object:0,1,2")
    suite_parts("libero-40")                     # the four suites of LIBERO that are evaluated together
    suite_parts("libero-40:0,13")                # ("libero-spatial:0", "libero-object:3")

Knows no simulator: what a part means is its benchmark's business.
"""

from __future__ import annotations

import re
from itertools import groupby

from vla_rl.config.errors import ConfigError

JOINT: dict[str, tuple[tuple[str, int], ...]] = {
    "libero-40": (
        ("libero-spatial", 10),
        ("libero-object", 10),
        ("libero-goal", 10),
        ("libero-10", 10),
    )
}
"""Names for unions: the suites, each with how many tasks it has."""

_NUMBERS = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", re.ASCII)
_SHOWN = 120


def suite_parts(expression: str) -> tuple[str, ...]:
    """The suites that are played together, in order; one where `expression` is no union. Blanks around `+` count
    nothing. ConfigError, naming the part, where one is empty, or picks what a named union does not have.
    """
    words = [word.strip() for word in expression.split("+")]
    if len(words) > 1 and "" in words:
        raise ConfigError(
            f"part {words.index('') + 1} of the union {shown(expression)} is empty: expected suites with + between "
            "them, for example mt10+libero-object:0,1,2"
        )
    return tuple(part for word in words for part in _expanded(word))


def is_union(expression: str) -> bool:
    """Whether several suites, or a name for several, are meant."""
    return "+" in expression or expression.strip().partition(":")[0] in JOINT


def suite_label(part: str) -> str:
    """What a part is called in results: its suite, whichever tasks of it are played."""
    return part.partition(":")[0]


def picked_numbers(word: str, count: int, suite: str) -> range | None:
    """The numbers that `3` or `0-3` picks of `count` tasks; None where the word is a name.

    ConfigError, naming `suite`, where a number is too large or a range runs backwards.
    """
    found = _NUMBERS.fullmatch(word)
    if found is None:
        return None
    first, last = int(found[1]), int(found[2] or found[1])
    if last >= count or first > last:
        raise ConfigError(
            f"suite {suite_label(suite)!r} has tasks 0 to {count - 1}, got {word!r} in {shown(suite)}: take one of "
            "these, or a range of them such as 0-3"
        )
    return range(first, last + 1)


def shown(expression: str) -> str:
    """The expression in quotes, fit for a line of text."""
    return repr(expression if len(expression) <= _SHOWN else expression[:_SHOWN] + "...")


def _expanded(word: str) -> tuple[str, ...]:
    name, colon, chosen = word.partition(":")
    if name not in JOINT:
        return (word,)
    suites = JOINT[name]
    if not colon:
        return tuple(suite for suite, _ in suites)
    tasks = [(suite, number) for suite, count in suites for number in range(count)]
    picked: list[tuple[str, int]] = []
    for piece in chosen.split(","):
        numbers = picked_numbers(piece.strip(), len(tasks), word)
        if numbers is None:
            raise ConfigError(
                f"{shown(word)}: tasks of {name} are picked by number, 0 to {len(tasks) - 1}, got {piece.strip()!r}. "
                f"By name, name the suite: {suites[0][0]}:<task name>"
            )
        picked += [tasks[number] for number in numbers]
    if len(set(picked)) < len(picked):
        raise ConfigError(f"{shown(word)} names a task twice: name each once")
    return tuple(
        f"{suite}:{','.join(str(number) for _, number in group)}"
        for suite, group in groupby(picked, key=lambda pair: pair[0])
    )
