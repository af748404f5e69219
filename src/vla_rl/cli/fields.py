"""The options of a command: its dataclass as the command-line library is told of it, with our help texts."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from vla_rl.config import ConfigError
from vla_rl.config.bounds import OutOfBoundsError, bounds_in_words, declared
from vla_rl.config.docstrings import field_docs


class Option(NamedTuple):
    """An option of a command and the field it sets."""

    name: str
    """As it is typed: `--ppo.no-normalize-advantages`."""
    path: str
    """The field as the command has it, `ppo.normalize_advantages`; flat commands leave out the group."""
    owner: type[Any]
    field: str
    attributes: str
    """The field within the command's configuration, with all groups."""
    is_switch: bool
    default: Any


def options_of(cls: type[Any], default: Any = None, flat: bool = False) -> list[Option]:
    """Every option of a command's dataclass, as the library names it; required fields are positional and left out."""
    return list(_options(cls, default, "", "", flat))


def _options(cls: Any, default: Any, prefix: str, within: str, flat: bool) -> Iterator[Option]:
    hints = typing.get_type_hints(cls)
    for entry in dataclasses.fields(cls):
        hint = hints[entry.name]
        value = _default(entry, default, None)
        path, attributes = f"{prefix}{entry.name}", f"{within}{entry.name}"
        inner = type(value) if dataclasses.is_dataclass(value) else hint
        if dataclasses.is_dataclass(inner):
            yield from _options(inner, value, "" if flat else f"{path}.", f"{attributes}.", flat)
        elif _has_default(entry):
            usual = _default(entry, default, None)
            rest = (path, cls, entry.name, attributes, hint is bool, usual)
            name = f"--{path.replace('_', '-')}"
            yield Option(name, *rest)
            if hint is bool:
                yield Option(negative(name), *rest)


def _has_default(entry: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return entry.default is not missing or entry.default_factory is not missing


def negative(option: str) -> str:
    head, dot, last = option.removeprefix("--").rpartition(".")
    return f"--{head}{dot}no-{last}"


class RefusedError(Exception):
    """Carries what a configuration objects to past the library, which would draw a box around it."""

    def __init__(self, reason: ConfigError) -> None:
        self.reason = reason


def in_its_words(reason: ConfigError, options: Iterable[Option]) -> ConfigError:
    """The error with the field as this command has it."""
    if isinstance(reason, OutOfBoundsError):
        for option in options:
            if (option.owner, option.field) == (reason.owner, reason.field):
                return reason.at(option.path)
    return reason


def registry() -> Any:
    """How the library makes our dataclasses: with our help texts, bounds among them."""
    import tyro

    rules = tyro.constructors.ConstructorRegistry()

    @rules.struct_rule
    def dataclass_rule(info: Any) -> Any:
        cls = info.type
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            return None
        given = info.default if isinstance(info.default, cls) else None
        hints = typing.get_type_hints(cls)

        def make(**fields: Any) -> Any:
            try:
                return cls(**fields)
            except ConfigError as error:
                raise RefusedError(error) from None

        fields = [
            tyro.constructors.StructFieldSpec(
                name=entry.name,
                type=hints[entry.name],
                default=_default(entry, given, tyro.MISSING),
                helptext=functools.partial(_help, cls, entry.name),
            )
            for entry in dataclasses.fields(cls)
        ]
        return tyro.constructors.StructConstructorSpec(instantiate=make, fields=tuple(fields))

    return rules


def _default(entry: dataclasses.Field[Any], given: Any, missing: Any) -> Any:
    if given is not None:
        return getattr(given, entry.name)
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return missing if entry.default is dataclasses.MISSING else entry.default


def _help(cls: type[Any], field: str) -> str:
    """A field's docstring with its bounds."""
    bounds = bounds_in_words(declared(cls)[field])
    return field_docs(cls).get(field, "") + (f" [{bounds}]" if bounds else "")
