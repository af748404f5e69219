"""JSON from outside, of bounded size and depth, into a typed schema."""

from __future__ import annotations

import functools
import json
import math
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vla_rl.config.errors import UserError
from vla_rl.runtime.external.faults import REMEDY, Phrase, dotted, fault, shown
from vla_rl.runtime.external.paths import path_inside

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

MAX_JSON_BYTES = 64 * 2**20
"""The tokenizer.json of large vocabularies takes 20 MB."""
SHOWN_FAULTS = 3
"""Further faults named in one error."""
MAX_DEPTH = 64
"""Files of this field nest less than ten deep."""


def read_json(
    path: Path,
    schema: type[T] = dict[str, Any],
    *,
    inside: Path | None = None,
    finite: bool = True,
    max_bytes: int = MAX_JSON_BYTES,
    remedy: str = REMEDY,
) -> T:
    """The contents of a JSON file, checked against `schema` (a dataclass, a TypedDict, `dict[str, X]`, `list[X]`).

    inside: the folder that no link may lead out of. finite: refuse NaN and infinity anywhere in the file.
    remedy: what the user should do, one sentence. Raises UserError for a file that is missing, too large, no JSON, too
    deep, or other than the schema says.
    """
    data = read_bytes(path, inside=inside, max_bytes=max_bytes, remedy=remedy)
    return parse_json(data, schema, source=path, finite=finite, remedy=remedy)


def read_bytes(
    path: Path, *, inside: Path | None = None, max_bytes: int, remedy: str = REMEDY
) -> bytes:
    """A whole file of at most `max_bytes`. Raises UserError where it is larger, missing or no regular file."""
    if inside is not None:
        path_inside(inside, path.relative_to(inside).as_posix(), source=inside)
    try:
        # a pipe would be waited for, a device has no end
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a folder" if path.is_dir() else "a pipe or a device"
            raise fault(path, "", "a file", Phrase(kind), remedy)
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise UserError(f"expected the file {path}, which is missing. {remedy}".rstrip()) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}. {remedy}".rstrip()) from error
    if len(data) > max_bytes:
        raise fault(path, "", f"at most {max_bytes} bytes", Phrase("a larger file"), remedy)
    return data


def parse_json(
    data: bytes | str,
    schema: type[T] = dict[str, Any],
    *,
    source: str | Path,
    finite: bool = True,
    remedy: str = REMEDY,
) -> T:
    """`read_json` of text in hand; `source` is what errors call it, "metrics.jsonl, line 3" for example."""
    text = data if isinstance(data, str) else _decoded(data, source, remedy)
    raw = _parsed(text, source, remedy)
    _check_tree(raw, source, finite, remedy)
    if schema == dict[str, Any]:
        if not isinstance(raw, dict):
            raise fault(source, "", "an object", raw, remedy)
        return cast(T, raw)
    # validating the text, not `raw`, is what lets a strict schema take lists for tuples and objects for dataclasses
    from pydantic import ValidationError

    try:
        return cast(T, _adapter(schema).validate_json(text, strict=True))
    except ValidationError as error:
        faults = list(_faults(raw, error.errors(include_url=False)))
        key, expected, found = faults[0]
        others = list(dict.fromkeys(k for k, _, _ in faults[1:] if k and k != key))[:SHOWN_FAULTS]
        more = f"Also wrong: {', '.join(others)}. " if others else ""
        raise fault(source, key, expected, found, more + remedy) from error


@functools.lru_cache(maxsize=128)
def _adapter(schema: type[T]) -> TypeAdapter[T]:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _decoded(data: bytes, source: str | Path, remedy: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = Phrase(f"the byte 0x{data[error.start]:02x} at position {error.start}")
        raise fault(source, "", "JSON in UTF-8", found, remedy) from error


def _parsed(text: str, source: str | Path, remedy: str) -> Any:
    if not text.strip():
        raise fault(source, "", "JSON", Phrase("an empty file"), remedy)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise _too_deep(source, remedy) from error
    except ValueError as error:
        raise fault(source, "", "valid JSON", Phrase(f"damaged text ({error})"), remedy) from error


def _too_deep(source: str | Path, remedy: str) -> UserError:
    return fault(source, "", f"at most {MAX_DEPTH} levels of nesting", Phrase("more"), remedy)


def _check_tree(raw: Any, source: str | Path, finite: bool, remedy: str) -> None:
    """Refuse what is nested too deep, and, with `finite`, any number that is not."""
    level: list[tuple[tuple[str | int, ...], Any]] = [((), {"": raw})]
    for depth in range(MAX_DEPTH + 1):
        inner: list[tuple[tuple[str | int, ...], Any]] = []
        for path, container in level:
            items = container.items() if isinstance(container, dict) else enumerate(container)
            for key, value in items:
                if isinstance(value, dict | list):
                    inner.append(((*path, key) if depth else (), value))
                elif finite and isinstance(value, float) and not math.isfinite(value):
                    where = dotted((*path, key)) if depth else ""
                    raise fault(source, where, "a finite number", Phrase(str(value)), remedy)
        level = inner
        if not level:
            return
    raise _too_deep(source, remedy)


# --- pydantic's errors in plain words

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of less than 19 digits",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
    "dataclass_exact_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "value_error": "another value ({error})",
    "json_invalid": "text without half a surrogate pair",
}


def _faults(raw: Any, errors: Iterable[Any]) -> Iterator[tuple[str, str, Phrase]]:
    """(key, expected, found) of each fault, with what the branches of a union expected of one value joined."""
    merged: dict[tuple[str | int, ...], tuple[list[str], Any]] = {}
    missing: list[tuple[str, str, Phrase]] = []
    for error in errors:
        path, value = _follow(raw, error["loc"])
        if error["type"] in ("missing", "missing_argument"):
            name = error["loc"][-1]
            missing.append((dotted(path), f'the key "{name}"', Phrase(shown(value))))
            continue
        wanted, _ = merged.setdefault(path, ([], value))
        expected = _expected(error)
        if expected not in wanted:
            wanted.append(expected)
    yield from missing
    for path, (wanted, value) in merged.items():
        # a fault inside a value says more than the other branches of the union, which wanted no such value
        if not any(len(other) > len(path) and other[: len(path)] == path for other in merged):
            yield dotted(path), " or ".join(wanted), Phrase(shown(value))


def _expected(error: Any) -> str:
    bounds = {k: str(v).removesuffix(".0") for k, v in error.get("ctx", {}).items()}
    words = _EXPECTED.get(error["type"])
    return words.format(**bounds) if words else error["msg"].removeprefix("Input should be ")


def _follow(raw: Any, loc: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], Any]:
    """Where `loc` leads in the data, and the value there. pydantic's names of union branches are no keys."""
    path: list[str | int] = []
    for step in loc:
        known = range(len(raw)) if isinstance(raw, list) else raw if isinstance(raw, dict) else ()
        if step in known:
            raw = cast(Any, raw)[step]
            path.append(step)
    return tuple(path), raw
