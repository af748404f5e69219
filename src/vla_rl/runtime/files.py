"""Files and folders that are either whole or not there: written aside, synced to the disk, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_rl.config.errors import UserError
from vla_rl.runtime import external


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step. Raises UserError where the disk is full or refuses."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise UserError(cannot_write(path, error)) from error


def write_json(path: Path, data: Mapping[str, Any] | Sequence[Any]) -> None:
    """`write_text` of `data`, indented for readers."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of our own. Raises UserError where it is missing or damaged.

    What others made is read with a schema: `vla_rl.runtime.external.read_json`.
    """
    # what was measured may be infinite
    return external.read_json(path, finite=False, remedy="")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into, which takes its name (and its place) at the end.

    After an error nothing is left of it, and what `folder` held is as it was. Raises UserError where the disk is full
    or refuses.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for path in aside.rglob("*"):
            sync_file(path)
        if folder.is_dir():
            shutil.rmtree(folder)
        aside.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise UserError(cannot_write(folder, error)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Have the operating system put what it holds of `path` on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """The same for the folder's list of names; file systems that cannot do that are let off."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: BaseException) -> str:
    """One line for a failed write: which file, why, and what to do about it."""
    number = getattr(error, "errno", None)
    remedy = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space or raise the quota",
        errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
        errno.EACCES: "give write permission or choose another folder",
        errno.EPERM: "give write permission or choose another folder",
        errno.EROFS: "choose a folder on a writable disk",
        errno.ENOTDIR: "choose another folder",
        errno.EEXIST: "choose another folder",
    }.get(number or 0, "check the disk and the folder")
    return f"cannot write {path}: {getattr(error, 'strerror', None) or error}; {remedy}"
