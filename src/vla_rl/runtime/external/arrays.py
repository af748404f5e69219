"""Arrays from outside: shape, kind and finite values, checked where they enter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vla_rl.config.errors import UserError
from vla_rl.runtime.external.faults import REMEDY, Phrase, fault

LARGEST = 1e9
"""Beyond any position, angle, force or count of a robot in its unit; a larger number is damage."""
CHUNK = 2**20


def check_array(
    values: np.ndarray,
    *,
    source: str | Path,
    key: str,
    shape: Sequence[int | None] | None = None,
    kinds: str = "fiu",
    largest: float = LARGEST,
    axes: Sequence[str] = (),
    locate: Callable[[tuple[int, ...]], str] | None = None,
    remedy: str = REMEDY,
) -> np.ndarray:
    """`values` as they are, if every number is finite and at most `largest` in size.

    shape: None stands for any length of an axis. kinds: numpy's letters of the kinds allowed (f float, i and u
    integers, b bool). axes: names of the axes, for errors such as "frame 12, dimension 3"; `locate` instead makes the
    words from the index. Raises UserError naming the first number that does not fit.
    """
    if shape is not None and not _fits(values.shape, shape):
        wanted = "(" + ", ".join("*" if size is None else str(size) for size in shape) + ")"
        raise fault(
            source, key, f"an array of shape {wanted}", Phrase(f"shape {values.shape}"), remedy
        )
    if values.dtype.kind not in kinds:
        names = {"f": "float", "i": "integer", "u": "unsigned integer", "b": "bool"}
        wanted = " or ".join(names.get(kind, kind) for kind in kinds)
        raise fault(source, key, f"numbers ({wanted})", Phrase(f"type {values.dtype}"), remedy)
    if values.dtype.kind not in "fiu":
        return values
    flat = values.reshape(-1)
    for start in range(0, len(flat), CHUNK):
        part = flat[start : start + CHUNK]
        # NaN compares false with everything
        good = (part <= largest) & (part >= -largest)
        if not good.all():
            row = start + int(np.flatnonzero(~good)[0])
            index = tuple(int(i) for i in np.unravel_index(row, values.shape))
            raise _not_finite(source, key, flat[row], largest, _where(index, axes, locate), remedy)
    return values


def _fits(found: tuple[int, ...], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(
        size is None or size == length for length, size in zip(found, wanted, strict=True)
    )


def _where(
    index: tuple[int, ...],
    axes: Sequence[str],
    locate: Callable[[tuple[int, ...]], str] | None,
) -> str:
    if locate is not None:
        return locate(index)
    names = [*axes, *(f"axis {number}" for number in range(len(axes), len(index)))]
    return ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=False))


def _not_finite(
    source: str | Path, key: str, value: np.generic, largest: float, where: str, remedy: str
) -> UserError:
    place = f" at {where}" if where else ""
    expected = f"finite numbers of at most {largest:g} in size"
    return fault(source, key, expected, Phrase(f"{value}{place}"), remedy)
