"""metrics.jsonl, which every run has; `runtime.trackers` makes copies of it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_rl.config.errors import UserError
from vla_rl.runtime.files import cannot_write, write_text


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, in order; a half-written last one is left out."""
    return [entry for entry, _ in _whole_lines(path)]


class MetricsFile:
    """metrics.jsonl: {"iteration": i, "wall_seconds": s, **metrics} a line, on the disk as soon as logged.

    `wall_seconds` counts the time this and earlier sittings had the file open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._earlier = max((e["wall_seconds"] for e in read_metrics(path)), default=0.0)
        self._opened = time.monotonic()
        self._drop(keep=None)

    def wall_seconds(self) -> float:
        """Seconds so far, earlier sittings included."""
        return self._earlier + time.monotonic() - self._opened

    def append(self, iteration: int, metrics: Mapping[str, float]) -> None:
        entry = {"iteration": int(iteration), "wall_seconds": round(self.wall_seconds(), 3)}
        line = json.dumps(entry | {name: _json_number(v) for name, v in metrics.items()})
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(cannot_write(self._path, error)) from error

    def rewind(self, iteration: int) -> None:
        """Drop the lines after `iteration`; the clock goes back with them."""
        self._file.close()
        self._drop(keep=iteration)
        self._earlier = max((e["wall_seconds"] for e in read_metrics(self._path)), default=0.0)
        self._opened = time.monotonic()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _drop(self, keep: int | None) -> None:
        """Rewrite the file without a half-written line and without iterations past `keep`; open it."""
        lines = [
            line
            for entry, line in _whole_lines(self._path)
            if keep is None or entry["iteration"] <= keep
        ]
        text = "".join(line + "\n" for line in lines)
        if self._path.exists() and self._path.read_text(encoding="utf-8", errors="replace") != text:
            write_text(self._path, text)
        try:
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(cannot_write(self._path, error)) from error


def _json_number(value: Any) -> float | int | None:
    """A JSON number from whatever counts as one (numpy and 0-d tensors too); null if not finite."""
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole_lines(path: Path) -> list[tuple[dict[str, Any], str]]:
    if not path.exists():
        return []
    found = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            if not all(_is_number(entry[key]) for key in ("iteration", "wall_seconds")):
                raise KeyError("iteration")
            found.append((entry, line))
        except (ValueError, LookupError, TypeError, RecursionError):
            if number >= len(lines) - 2:
                continue
            raise UserError(f"{path} is damaged in line {number + 1}: remove that line") from None
    return found
