"""A figure on the disk, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vla_rl.config.errors import UserError
from vla_rl.runtime.files import require_writable, whole_file

FORMATS = ("png", "jpg", "jpeg", "pdf", "svg")


def require_figure(path: Path, *more: str) -> Path:
    """Raise UserError, before anything is worked out for it, where no figure could be written to `path`; returns it.

    more: formats beyond those of figures that the caller can write.
    """
    known = (*FORMATS, *more)
    if path.suffix.removeprefix(".").lower() not in known:
        raise UserError(f"cannot write {path}: expected a name that ends in .{', .'.join(known)}")
    return require_writable(path, "file")


def save_figure(figure: Any, path: Path, dpi: int) -> None:
    """Write a matplotlib figure in the format that the name says. UserError where it cannot be written."""
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=dpi, format=path.suffix.removeprefix(".").lower())
