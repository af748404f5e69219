"""Damage to files from outside, for property tests of whatever reads them.

    @few
    @given(json_damage)
    def check(damage):
        with changed(folder / "config.json", damage.of(original)):
            loaded = load_or_user_error(lambda: load(folder), folder)

JSON and tables are damaged in what they say: null, another type, missing, deep, huge, not finite, a path that leads
away. Bytes are damaged as disks do it: bits flipped, cut short, zeroed, longer. A damage fits any file, whatever its
size, so that examples stay short.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from hypothesis import settings
from hypothesis import strategies as st

from vla_rl.config import UserError

R = TypeVar("R")
LONGEST_ERROR = 1500

few = settings(max_examples=25)
"""Enough to meet each kind of damage; a search for more is `--hypothesis-seed` with a larger number."""

WRONG_VALUES: list[Any] = [
    None, True, False, 0, -1, 3, 0.5, 10**30, -(10**30), 1e300, float("nan"), float("inf"), -float("inf"), "", "x", "3",
    "../../../etc/passwd", "/etc/passwd", "{chunk_index:2000000000d}", "\ud800", "\x1b[31m\n", "x" * 100_000,
    [], [None], [1, "x"], [[[]]], {}, {"a": None}, {"": 1},
]  # fmt: skip
DELETED, DEEP, DOUBLED = "<deleted>", "<deep>", "<doubled>"


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """`path` with other contents, put back at the end."""
    before = path.read_bytes()
    try:
        path.write_bytes(content)
        yield
    finally:
        path.write_bytes(before)


def load_or_user_error(read: Callable[[], R], folder: Path) -> R | None:
    """What `read` returns, None where it raises UserError; anything else that it raises fails the test.

    The error must be one line of bounded length that can be printed and names the file or its folder.
    """
    try:
        return read()
    except UserError as error:
        text = str(error)
        assert str(folder) in text
        assert text.isprintable()
        assert len(text) < LONGEST_ERROR
        return None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document, the document itself first; of long lists the ends."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for i in sorted({0, len(value) - 1} & set(range(len(value)))):
            yield from places(value[i], (*path, i))


@dataclass(frozen=True)
class JsonDamage:
    """One value of a document replaced by `wrong`, left out, buried in lists, or put there twice."""

    place: int
    wrong: Any

    def of(self, document: Any) -> bytes:
        found = list(places(document))
        path = found[self.place % len(found)]
        damaged = {"": copy.deepcopy(document)}  # so that the document itself has a parent
        parent: Any = damaged
        for step in (full := ("", *path))[:-1]:
            parent = parent[step]
        if self.wrong == DELETED:
            del parent[full[-1]]
        else:
            parent[full[-1]] = self._changed(parent[full[-1]])
        return json.dumps(damaged.get("")).encode()

    def _changed(self, value: Any) -> Any:
        if self.wrong == DEEP:
            for _ in range(300):
                value = [value]
            return value
        return [value, value] if self.wrong == DOUBLED else self.wrong


json_damage = st.builds(
    JsonDamage, st.integers(0, 999), st.sampled_from([*WRONG_VALUES, DELETED, DEEP, DOUBLED])
)


@dataclass(frozen=True)
class ByteDamage:
    """Damage at a share `at` of a file's length."""

    kind: str
    at: float
    length: int
    bit: int

    def of(self, content: bytes) -> bytes:
        at = int(self.at * len(content))
        before, part, after = content[:at], content[at : at + self.length], content[at:]
        flipped = bytes(byte ^ (1 << self.bit) for byte in part)
        junk = bytes((31 * i + self.bit) % 256 for i in range(self.length))
        return {
            "flip": before + flipped + after[self.length :],
            "zero": before + bytes(len(part)) + after[self.length :],
            "drop": before + after[self.length :],
            "insert": before + junk + after,
            "truncate": before,
            "append": content + junk,
        }[self.kind]


byte_damage = st.builds(
    ByteDamage,
    st.sampled_from(["flip", "zero", "drop", "insert", "truncate", "append"]),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([1, 8, 200]),
    st.integers(0, 7),
)


@dataclass(frozen=True)
class TableDamage:
    """One column of a table with a wrong value in a row, of another type, missing or twice; or its rows moved."""

    kind: str
    column: int
    row: int
    choice: int

    def of(self, table: pa.Table) -> pa.Table:
        at = self.column % len(table.column_names)
        name, row = table.column_names[at], self.row % len(table)
        return getattr(self, f"_{self.kind}")(table, at, name, row)

    def _value(self, table: pa.Table, at: int, name: str, row: int) -> pa.Table:
        values = table[name].to_pylist()
        choices = wrong_values(values[row])
        values[row] = choices[self.choice % len(choices)]
        return table.set_column(at, name, _array(values, table[name].type))

    def _rows(self, table: pa.Table, at: int, name: str, row: int) -> pa.Table:
        everything = list(range(len(table)))
        orders = [[], [row], [*everything, row], everything[::-1], [0] * 5]
        return table.take(pa.array(orders[self.choice % len(orders)], pa.int64()))

    def _names(self, table: pa.Table, at: int, name: str, row: int) -> pa.Table:
        renamed = [f"{n}\x1b" if n == name else n for n in table.column_names]
        return [
            table.rename_columns(renamed),
            table.drop_columns([name]),
            table.append_column(name, table[name]),
        ][self.choice % 3]

    def _types(self, table: pa.Table, at: int, name: str, row: int) -> pa.Table:
        values = table[name].to_pylist()
        columns = [
            pa.array([str(value)[:50] for value in values]),
            pa.array([[value] for value in values]),
            pa.nulls(len(table)),
            pa.nulls(len(table), table[name].type),
        ]
        return table.set_column(at, name, columns[self.choice % len(columns)])


table_damage = st.builds(
    TableDamage,
    st.sampled_from(["value", "value", "rows", "names", "types"]),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(0, 11),
)


def wrong_values(value: Any) -> list[Any]:
    """Null, and values of the same type that no healthy file holds; inside lists and structs as well."""
    if isinstance(value, list) and value:
        inner = [[wrong, *value[1:]] for wrong in wrong_values(value[0])]
        return [None, [], value * 2, *inner]
    if isinstance(value, dict):
        return [
            None,
            *({**value, key: wrong} for key in value for wrong in wrong_values(value[key])),
        ]
    if isinstance(value, bool):
        return [None, not value]
    if isinstance(value, int):
        return [None, -1, value + 1, 10**6, 2**31, -(2**63), 2**63 - 1]
    if isinstance(value, float):
        return [None, np.nan, np.inf, -np.inf, 1e38, -1e38, 1e300, -1.0]
    if isinstance(value, bytes):
        return [None, b"", b"x", value[: len(value) // 2], b"\x89PNG" + bytes(100)]
    return [None, "", "x" * 100_000, "../../secret", "/etc/passwd", "\x1b[31m"]


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """As the column's own type where the values allow it, else as pyarrow sees them."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        pass
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return pa.array([str(value)[:50] for value in values])
