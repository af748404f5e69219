"""Configurations as JSON and back: what a run folder stores and a resumed run reads.

    from_json(type(config), to_json(config)) == config

The JSON is the resolved configuration, field by field, so that it can be read without this project.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vla_rl.config.errors import ConfigError, nearest
from vla_rl.config.old_names import renamed

C = TypeVar("C")
Json = dict[str, Any]

_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def to_json(config: Any) -> Json:
    """The dataclass `config` as nested dicts and lists of JSON values."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"expected an instance of a dataclass, got {type(config).__name__}")
    return {f.name: _encode(getattr(config, f.name)) for f in dataclasses.fields(config)}


def differences(one: Any, two: Any) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations (or what `to_json` made of them) differ, by dotted name: both values."""
    if dataclasses.is_dataclass(one):
        one = to_json(one)
    if dataclasses.is_dataclass(two):
        two = to_json(two)
    if not isinstance(one, dict) or not isinstance(two, dict):
        return {} if one == two else {"": (one, two)}
    first, second = cast(Json, one), cast(Json, two)
    return {
        (_join(name, inner) if inner else name): values
        for name in dict.fromkeys([*first, *second])
        for inner, values in differences(first.get(name), second.get(name)).items()
    }


def from_json(cls: type[C], data: object, path: str = "") -> C:
    """Build the dataclass `cls` from what `to_json` made of it.

    A field that is left out takes its default. Raises ConfigError, naming the dotted path of the
    field, where a field is unknown (with the nearest known name), has another type or is missing,
    and whatever the dataclass itself objects to.
    """
    where = path or "the configuration"
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected an object with fields, got {_shown(data)}")
    values = renamed(cls, cast("Mapping[str, object]", data))
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls)) if f.init}
    for name in values:
        if name not in fields:
            raise ConfigError(f"{_join(path, name)}: no such field.{nearest(name, fields)}")
    hints = get_type_hints(cls)
    arguments: Json = {}
    for name, f in fields.items():
        if name in values:
            arguments[name] = _decode(hints[name], values[name], _join(path, name))
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_join(path, name)}: missing, and it has no default")
    return cls(**arguments)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in cast("Sequence[Any]", value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a configuration field cannot hold a {type(value).__name__}: {value!r}")


def _decode(hint: Any, value: object, path: str) -> Any:
    origin = get_origin(hint)
    if origin is Literal:
        return _literal(get_args(hint), value, path)
    if origin in (Union, types.UnionType):
        return _optional(get_args(hint), value, path)
    if origin is tuple:
        return _tuple(get_args(hint), value, path)
    if dataclasses.is_dataclass(hint):
        return from_json(cast("type[Any]", hint), value, path)
    if hint in _NAMES:
        return _scalar(hint, value, path)
    raise TypeError(f"{path}: configurations do not support the type {hint}")


def _scalar(kind: type, value: object, path: str) -> Any:
    # bool is a subclass of int, and 1 is a fine float: neither may slip through the other way round
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{path}: expected {_NAMES[kind]}, got {_shown(value)}")
    return value


def _literal(choices: tuple[Any, ...], value: object, path: str) -> Any:
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return value
    known = [str(choice) for choice in choices]
    raise ConfigError(
        f"{path}: expected one of {', '.join(known)}, got {_shown(value)}."
        + (nearest(value, known) if isinstance(value, str) else "")
    )


def _optional(options: tuple[Any, ...], value: object, path: str) -> Any:
    inner = [option for option in options if option is not type(None)]
    if value is None and len(inner) < len(options):
        return None
    if len(inner) != 1:
        raise TypeError(f"{path}: of unions, configurations support only `X | None`")
    return _decode(inner[0], value, path)


def _tuple(items: tuple[Any, ...], value: object, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{path}: expected a list, got {_shown(value)}")
    given = cast("Sequence[object]", value)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(given)
    if len(given) != len(items):
        raise ConfigError(f"{path}: expected {len(items)} values, got {len(given)}")
    return tuple(
        _decode(hint, v, f"{path}[{i}]")
        for i, (hint, v) in enumerate(zip(items, given, strict=True))
    )
