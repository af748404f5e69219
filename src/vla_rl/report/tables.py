"""Tables of numbers in a run folder: files of JSON lines, read as columns."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from vla_rl.config.errors import UserError
from vla_rl.runtime.external import path_inside

_LAST_INDEX = 2**53
_DIVERGED = 1e30  # a metric as large as this says as little as infinity


@dataclass(frozen=True)
class Table:
    """Rows of a JSON-lines file as columns; a value that is missing, not finite or beyond 1e30 is NaN."""

    index: Int64[np.ndarray, " R"]  # iteration, or epoch
    columns: Mapping[str, Float64[np.ndarray, " R"]] = field(default_factory=dict)
    not_finite: tuple[str, ...] = ()  # columns that held such a value, as opposed to nothing

    def __len__(self) -> int:
        return len(self.index)

    def get(self, key: str) -> Float64[np.ndarray, " R"] | None:
        """The column, or None where it is absent or holds no finite number."""
        column = self.columns.get(key)
        return column if column is not None and bool(np.isfinite(column).any()) else None

    def under(self, prefix: str) -> dict[str, Float64[np.ndarray, " R"]]:
        """Columns named `<prefix><name>`, by name, where they hold any number."""
        found = ((k[len(prefix) :], self.get(k)) for k in self.columns if k.startswith(prefix))
        return {name: column for name, column in found if column is not None}


def read_table(folder: Path, name: str, index: str, problems: list[str]) -> Table:
    """Rows by `index`; of rows with the same index (a resumed run) the last one counts."""
    file = folder / name
    if not is_inside(folder, name, problems):
        return Table(np.zeros(0, dtype=np.int64))
    rows: dict[int, dict[str, Any]] = {}
    damaged = 0
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    except OSError as error:
        problems.append(f"{file.name} could not be read and was left out ({error}).")
        lines = []
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        place = integer(row.get(index)) if isinstance(row, dict) else None
        if isinstance(row, dict) and place is not None and abs(place) <= _LAST_INDEX:
            rows[place] = row
        else:
            damaged += 1
    if damaged:
        lines_were = "1 line was" if damaged == 1 else f"{damaged} lines were"
        problems.append(f"{file.name}: {lines_were} damaged and left out (a run cut short).")
    order = sorted(rows)
    keys = dict.fromkeys(key for i in order for key in rows[i] if key != index)
    columns: dict[str, Float64[np.ndarray, " R"]] = {}
    not_finite: list[str] = []
    for key in keys:
        values = [number(rows[i].get(key)) for i in order]
        column = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
        diverged = ~(np.abs(column) < _DIVERGED)
        if any(v is not None for v, bad in zip(values, diverged, strict=True) if bad):
            not_finite.append(key)
        column[diverged] = np.nan
        columns[key] = column
    return Table(np.array(order, dtype=np.int64), columns, tuple(not_finite))


def is_inside(folder: Path, name: str, problems: list[str]) -> bool:
    """Whether `name` is the run's own file: what a link out of its folder leads to must not end up in its report."""
    try:
        path_inside(folder, name, source=folder, remedy="")
    except UserError:
        problems.append(f"{name} is a link that leads out of the run's folder, and was left out.")
        return False
    if (folder / name).exists() and not (folder / name).is_file():  # a pipe would never end
        problems.append(f"{name} is no file, and was left out.")
        return False
    return True


def number(value: Any) -> float | None:
    if not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def integer(value: Any) -> int | None:
    found = number(value)
    return int(found) if found is not None and math.isfinite(found) else None
