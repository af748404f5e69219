"""Configurations as JSON and back: what a run folder stores and a resumed run reads.

    from_json(type(config), to_json(config)) == config

The JSON is the resolved configuration, field by field, so that it can be read without this project.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

from vla_rl.config.bounds import declared, fault, shown, without_bounds
from vla_rl.config.errors import ConfigError, nearest
from vla_rl.config.old_names import renamed

C = TypeVar("C")
Json = dict[str, Any]


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


def from_json(cls: type[C], data: object, path: str = "", *, source: str | Path = "") -> C:
    """Build the dataclass `cls` from what `to_json` made of it.

    A field that is left out takes its default. `source` is the file that `data` was read from: errors name it, and the
    fields that every saved configuration has (`Config.saved`) must be there. Raises ConfigError with the dotted path of
    a field that is unknown (with the nearest known name), missing, of another type or out of its bounds, and for
    whatever the dataclass itself objects to.
    """
    if not source:
        return _build(cls, data, path, whole=False)
    try:
        return _build(cls, data, path, whole=True)
    except ConfigError as error:
        stop = "" if str(error).endswith((".", "?")) else "."
        raise ConfigError(f"{source}: {error}{stop} Fix the file, or take another run") from error


def _build(cls: type[C], data: object, path: str, whole: bool) -> C:
    where = path or "the configuration"
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected an object with fields, got {shown(data)}")
    values = renamed(cls, cast("Mapping[str, object]", data))
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls)) if f.init}
    for name in values:
        if name not in fields:
            raise ConfigError(f"{_join(path, name)}: no such field.{nearest(name, fields)}")
    hints = declared(cls)
    arguments: Json = {}
    for name, f in fields.items():
        if name in values:
            arguments[name] = _decode(hints[name], values[name], _join(path, name), whole)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{_join(path, name)}: missing, and it has no default")
    for name in getattr(cls, "saved", ()) if whole else ():
        if name not in values:
            raise ConfigError(f"{_join(path, name)}: missing, and every saved configuration has it")
    return cls(**arguments)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in cast("Sequence[Any]", value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a configuration field cannot hold a {type(value).__name__}: {value!r}")


def _decode(hint: Any, value: object, path: str, whole: bool) -> Any:
    kind = without_bounds(hint)
    if dataclasses.is_dataclass(kind) and not (value is None and kind is not hint):
        return _build(cast("type[Any]", kind), value, path, whole)
    converted = _converted(kind, value)
    found = fault(hint, converted)
    if found is not None:
        raise ConfigError(f"{path}{found}")
    return converted


def _converted(kind: Any, value: object) -> Any:
    """JSON has no tuples, and writes 1 for 1.0."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) <= sys.float_info.max else value
    if get_origin(kind) is tuple and isinstance(value, list):
        given, items = cast("list[object]", value), get_args(kind)
        kinds = [items[0]] * len(given) if items[-1] is Ellipsis else [*items]
        if len(kinds) == len(given):
            return tuple(
                _converted(without_bounds(k), v) for k, v in zip(kinds, given, strict=True)
            )
    return cast(Any, value)
