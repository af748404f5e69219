"""Values of before on a command line: understood, with one line that says how they are given today."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vla_rl.config.old_names import OLD_SWITCHES, OLD_VALUES, NewValue, trackers_of_switches


class OldValue(NamedTuple):
    """An option of which a value is said otherwise today."""

    prefix: str
    """Of the options of its group, "reward." for example."""
    today: NewValue
    many: bool
    """Whether it takes several words."""


def old_values(cls: Any, default: Any, prefix: str, flat: bool) -> Iterator[tuple[str, OldValue]]:
    """Those of the dataclass and of what is nested in it, by the option."""
    hints = typing.get_type_hints(cls)
    for field, today in OLD_VALUES.get(cls.__name__, {}).items():
        many = typing.get_origin(hints[field]) is tuple
        yield _option(prefix, field), OldValue(prefix, today, many)
    for entry in dataclasses.fields(cls):
        value = getattr(default, entry.name, None)
        inner = type(value) if dataclasses.is_dataclass(value) else hints[entry.name]
        if dataclasses.is_dataclass(inner):
            name = f"{prefix}{entry.name.replace('_', '-')}"
            yield from old_values(inner, value, "" if flat else f"{name}.", flat)


def with_new_values(words: Sequence[str], old: Mapping[str, OldValue], command: str) -> list[str]:
    """`words` with what is said otherwise today replaced, and one line about each on standard error."""
    replaced: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        option = name.replace("_", "-")
        if option not in old:
            replaced.append(word)
            continue
        known = old[option]
        given = [value] if equals else _values(waiting, known.many)
        said = _said_today(known, given) if given else [option]
        if said != [option, *given]:
            before = " ".join([option, *given])
            print(f"vla-rl {command}: {before} is {' '.join(said)} now", file=sys.stderr)
        replaced += said
    return replaced


class OldSwitches(NamedTuple):
    """Switches of which one option says the same today."""

    option: str
    switches: Mapping[str, tuple[str, bool]]
    """The words of before, `--run.no-wandb`, and what each sets: the switch, and whether it is on."""
    default: str


def old_switches(cls: Any, default: Any, prefix: str, flat: bool) -> Iterator[OldSwitches]:
    """Those of the dataclass and of what is nested in it."""
    hints = typing.get_type_hints(cls)
    if cls.__name__ in OLD_SWITCHES:
        new, switches = OLD_SWITCHES[cls.__name__]
        words = {_option(prefix, name): (name, True) for name in switches}
        words |= {_option(prefix, f"no_{name}"): (name, False) for name in switches}
        usual = getattr(default, new, None) or cls.__dataclass_fields__[new].default
        yield OldSwitches(_option(prefix, new), words, usual)
    for entry in dataclasses.fields(cls):
        value = getattr(default, entry.name, None)
        inner = type(value) if dataclasses.is_dataclass(value) else hints[entry.name]
        if dataclasses.is_dataclass(inner):
            name = f"{prefix}{entry.name.replace('_', '-')}"
            yield from old_switches(inner, value, "" if flat else f"{name}.", flat)


def without_switches(words: Sequence[str], old: OldSwitches, command: str) -> list[str]:
    """`words` with switches of before said as the option of today, and one line about it on standard error."""
    plain = [word.replace("_", "-") for word in words]
    given = {old.switches[word][0]: old.switches[word][1] for word in plain if word in old.switches}
    if not given:
        return [*words]
    kept = [word for word, name in zip(words, plain, strict=True) if name not in old.switches]
    at = next((i for i, word in enumerate(kept) if word.partition("=")[0] == old.option), None)
    before = old.default
    if at is not None:
        _, equals, before = kept[at].partition("=")
        before = before if equals else "".join(kept[at + 1 : at + 2])
        del kept[at : at + (1 if equals else 2)]
    said = [old.option, trackers_of_switches(before, given)]
    switches = " ".join(word for word in plain if word in old.switches)
    print(f"vla-rl {command}: {switches} is {' '.join(said)} now", file=sys.stderr)
    return [*kept, *said]


def _values(waiting: list[str], many: bool) -> list[str]:
    """Takes an option's words from the front of `waiting`."""
    given: list[str] = []
    while waiting and not waiting[0].startswith("-") and (many or not given):
        given.append(waiting.pop(0))
    return given


def _said_today(known: OldValue, given: list[str]) -> list[str]:
    words: list[str] = []
    for field, value in known.today(given if known.many else given[0]).items():
        words += [_option(known.prefix, field), *(value if isinstance(value, list) else [value])]
    return words


def _option(prefix: str, field: str) -> str:
    return f"--{prefix}{field}".replace("_", "-")
