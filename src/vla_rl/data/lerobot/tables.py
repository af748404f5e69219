"""Parquet files from outside: opened, bounded before they unfold, and read as checked numpy arrays.

A small file can unfold to any size, by runs of equal values or by one text that every row repeats. So numbers are
counted in the file's own metadata before a column is read, and texts and bytes are read as dictionaries, in which what
is repeated is held once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vla_rl.config.errors import UserError
from vla_rl.data.inspection import inspect
from vla_rl.runtime.external import Phrase, fault, path_inside, shown
from vla_rl.runtime.memory import require_memory

MOST_UNFOLDED = 1000
"""Bytes in memory for one byte of the file; columns of measurements unfold tenfold at most."""
SMALL = 64 * 2**20
"""What may unfold to so many bytes is never refused."""
FEW_ROWS, MOST_ROWS = 100_000, 4
"""Rows that are never refused, and rows for each byte of a file: in a dataset no two rows are alike."""
LONGEST_TEXT = 10_000
REMEDY = "Fetch the dataset again, or repair the file with the program that wrote it."
# what pyarrow raises for damaged files, damaged names within them included
DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError)

RowName = Callable[[int], str]


@dataclass
class Table:
    """One parquet file, of which nothing but the metadata has been read."""

    path: Path
    file: pq.ParquetFile
    bytes: int
    sizes: dict[str, list[int]]
    """Bytes that each column takes in memory, row group by row group, as the file says itself."""
    _last: tuple[str, list[int], pa.ChunkedArray] | None = None
    """The row groups that were read last: the next pictures often lie in the same."""

    @property
    def rows(self) -> int:
        return self.file.metadata.num_rows

    @property
    def names(self) -> list[str]:
        return list(self.file.schema_arrow.names)

    def read(self, column: str, start: int = 0, stop: int | None = None) -> pa.ChunkedArray:
        """Rows start..stop of one column, reading no more row groups than needed.

        Raises UserError for a column that is missing, damaged, or too large for the file or the memory.
        """
        if column not in self.names:
            there = Phrase(f"the columns {', '.join(self.names[:12])}")
            raise fault(self.path, "", f"the column {column!r}", there, REMEDY)
        stop = self.rows if stop is None else stop
        metadata = self.file.metadata
        groups, first, before = [], 0, 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if before < stop and before + rows > start:
                first = before if not groups else first
                groups.append(group)
            before += rows
        values = self._row_groups(column, groups).slice(start - first, stop - start)
        if len(values) != stop - start:
            raise fault(self.path, column, f"{stop - start} rows", Phrase(f"{len(values)}"), REMEDY)
        return values

    def _row_groups(self, column: str, groups: list[int]) -> pa.ChunkedArray:
        if self._last is not None and self._last[:2] == (column, groups):
            return self._last[2]
        self._check_unfolded(column, groups)
        try:
            values = self.file.read_row_groups(groups, columns=[column])[column]
            values.validate(full=True)  # numbers of texts that the dictionary does not have
        except DAMAGE as error:
            raise damaged(self.path, error) from error
        self._last = (column, groups, values)
        return values

    def _check_unfolded(self, column: str, groups: Sequence[int]) -> None:
        leaves = [
            sizes
            for leaf, sizes in self.sizes.items()
            if leaf == column or leaf.startswith(f"{column}.")
        ]
        size = sum(sizes[group] for sizes in leaves for group in groups)
        if size > max(SMALL, MOST_UNFOLDED * self.bytes):
            found = Phrase(f"{self.bytes} bytes that unfold to {size / 1e6:,.0f} MB")
            expected = f"a file that unfolds to at most {MOST_UNFOLDED} times its size"
            raise fault(self.path, column, expected, found, REMEDY)
        require_memory(size, f"{self.path}: the column {column!r}", "Take a part of the dataset.")


def open_table(folder: Path, name: str, *, source: str | Path, key: str = "") -> Table:
    """The parquet file `folder / name`, which `source` names under `key`; it must lie in the folder.

    Raises UserError for a file that is missing, damaged or lies elsewhere.
    """
    path = path_inside(folder, name, source=source, key=key)
    if not path.is_file():
        raise UserError(f"expected the file {path}, which is missing. {REMEDY}")
    sizes = inspect("parquet", path)
    try:
        metadata = pq.read_metadata(path)
        texts = [
            metadata.schema.column(i).path
            for i in range(metadata.num_columns)
            if metadata.schema.column(i).physical_type == "BYTE_ARRAY"
        ]
        file = pq.ParquetFile(
            path, metadata=metadata, read_dictionary=texts, page_checksum_verification=True
        )
        _ = file.schema_arrow.names
        table = Table(path, file, path.stat().st_size, sizes)
    except DAMAGE as error:
        raise damaged(path, error) from error
    most = max(FEW_ROWS, MOST_ROWS * table.bytes)
    if table.rows > most:
        expected = f"at most {most:,} rows in {table.bytes:,} bytes"
        raise fault(path, "", expected, Phrase(f"{table.rows:,}"), REMEDY)
    return table


def damaged(path: Path, error: BaseException) -> UserError:
    reason = " ".join(str(error).split())[:200]
    found = Phrase(f"one that is damaged or cut short ({reason})")
    return fault(path, "", "a parquet file", found, REMEDY)


def numbers(
    values: pa.ChunkedArray,
    shape: tuple[int, ...],
    dtype: str,
    *,
    source: str | Path,
    key: str,
    row_name: RowName = "row {}".format,
) -> np.ndarray:
    """A column as a numpy array of `dtype`, shape (F, *shape); (F,) where `shape` is (1,), stored as lists or not.

    Raises UserError naming the first row that is null, of another size, or of another kind of number.
    """
    array: Any = values.combine_chunks()
    stride, rows = 1, len(values)

    def refuse(expected: str, found: str, position: int) -> UserError:
        where = row_name(position // stride)
        return fault(source, key, expected, Phrase(f"{found} in {where}"), REMEDY)

    for size in () if shape == (1,) and not _is_list(array.type) else shape:
        _refuse_null(array, refuse)
        expected = f"rows of shape {shape}"
        if not _is_list(array.type):
            raise refuse(expected, f"{array.type}", 0)
        lengths = _lengths(array)
        if (lengths != size).any():
            position = int(np.flatnonzero(lengths != size)[0])
            raise refuse(expected, f"a list of {lengths[position]}", position)
        array, stride = array.flatten(), stride * size
    _refuse_null(array, refuse)
    if not _storable(array.type, dtype):
        raise refuse(f"numbers of type {dtype}", f"{array.type}", 0)
    flat = array.to_numpy(zero_copy_only=False)
    if np.dtype(dtype).kind in "iu" and flat.dtype != dtype and len(flat):
        limits = np.iinfo(dtype)
        outside = (flat < limits.min) | (flat > limits.max)
        if outside.any():
            position = int(np.flatnonzero(outside)[0])
            raise refuse(f"numbers of type {dtype}", f"{flat[position]}", position)
    with np.errstate(over="ignore"):  # becomes infinite, which whoever uses it refuses
        result = flat.astype(dtype, copy=False)
    return result.reshape(rows) if shape == (1,) else result.reshape(rows, *shape)


def integers(table: Table, name: str, least: int = 0, most: int = 2**40) -> np.ndarray:
    """A column of whole numbers in a range. Raises UserError naming the row and the column."""
    values = numbers(table.read(name), (1,), "int64", source=table.path, key=f"column {name!r}")
    outside = (values < least) | (values > most)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        found = Phrase(f"{values[row]} in row {row}")
        expected = f"a whole number of at least {least}"
        raise fault(table.path, f"column {name!r}", expected, found, REMEDY)
    return values


def texts(
    values: pa.ChunkedArray, *, source: str | Path, key: str, row_name: RowName = "row {}".format
) -> list[str]:
    """A column of texts. Raises UserError naming the first row that holds none, or a very long one."""
    result: list[str] = []
    for chunk in values.chunks:
        decoded = _decoded(chunk)
        wrong = next((i for i, t in enumerate(decoded) if not _is_text(t)), None)
        if wrong is not None:
            found = decoded[wrong]
            said = "a longer one" if isinstance(found, str) else _kind(found)
            where = Phrase(f"{said} in {row_name(len(result) + wrong)}")
            expected = f"a text of at most {LONGEST_TEXT} characters"
            raise fault(source, key, expected, where, REMEDY)
        result += cast("list[str]", decoded)
    return result


def text_lists(values: pa.ChunkedArray, *, source: str | Path, key: str) -> list[tuple[str, ...]]:
    """A column of lists of texts; a text alone counts as a list of one."""
    if not _is_list(values.type):
        return [(text,) for text in texts(values, source=source, key=key)]
    array: Any = values.combine_chunks()

    def refuse(expected: str, found: str, position: int) -> UserError:
        return fault(source, key, expected, Phrase(f"{found} in row {position}"), REMEDY)

    _refuse_null(array, refuse, "a list of texts")
    lengths = _lengths(array)
    ends = np.cumsum(lengths)
    rows = np.repeat(np.arange(len(ends)), lengths)
    flat = texts(
        pa.chunked_array([array.flatten()]), source=source, key=key,
        row_name=lambda i: f"row {rows[i]}",
    )  # fmt: skip
    return [tuple(flat[start:end]) for start, end in zip(ends - lengths, ends, strict=True)]


def _refuse_null(
    array: Any, refuse: Callable[[str, str, int], UserError], expected: str = "a number"
) -> None:
    if array.null_count:
        position = int(np.flatnonzero(np.asarray(array.is_null()))[0])
        raise refuse(expected, "null", position)


def _lengths(array: Any) -> np.ndarray:
    return np.asarray(cast(Any, pc).list_value_length(array))


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _storable(kind: pa.DataType, dtype: str) -> bool:
    """Whether a column of this type can be taken for `dtype`: never a fraction for a whole number."""
    wanted = np.dtype(dtype).kind
    if wanted == "b":
        return pa.types.is_boolean(kind)
    if wanted == "f":
        return pa.types.is_floating(kind) or pa.types.is_integer(kind)
    return pa.types.is_integer(kind)


def _decoded(chunk: Any) -> list[Any]:
    if isinstance(chunk, pa.DictionaryArray):
        # every text becomes one Python string, however many rows repeat it
        known = _decoded(chunk.dictionary)
        return [None if i is None else known[i] for i in chunk.indices.to_pylist()]
    try:
        return chunk.to_pylist()
    except UnicodeDecodeError:
        return [b""] * len(chunk)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return "bytes that are no text" if isinstance(value, bytes) else shown(value)
