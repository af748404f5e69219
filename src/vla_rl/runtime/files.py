"""Files and folders that are either whole or not there: written aside, synced to the disk, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from vla_rl.config.errors import UserError
from vla_rl.runtime import external
from vla_rl.runtime.partial import other_writer, sweep, unfinished_path

_MAX_NAME = 180  # bytes of a file name, which leaves room for the hidden name it is written under


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step. Raises UserError where the disk is full or refuses."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to, which takes its place at the end; after an error nothing is left of it.

    Folders above it are made, and what killed processes left beside it is removed. Raises UserError where the disk
    is full or refuses.
    """
    aside = unfinished_path(path, "tmp")
    try:
        sweep(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        sync_file(aside)
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(cannot_write(path, error)) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


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
    folder = folder.resolve() if folder.is_symlink() else folder
    aside = begin_folder(folder)
    try:
        yield aside
        finish_folder(aside, folder)
    except OSError as error:
        raise UserError(cannot_write(folder, error)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def begin_folder(folder: Path) -> Path:
    """Make the folder to write to what will be `folder`; what killed processes left beside it is removed.

    Whoever begins must `finish_folder`, or remove it. UserError where it cannot be made.
    """
    aside = unfinished_path(folder, "partial")
    try:
        sweep(folder.parent)
        writer = other_writer(folder)
        if writer is not None:
            raise UserError(
                f"process {writer} is writing {folder}: wait for it, or choose another name"
            )
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    except OSError as error:
        raise UserError(cannot_write(folder, error)) from error
    return aside


def finish_folder(aside: Path, folder: Path) -> None:
    """Put what `begin_folder` gave on the disk and let it appear as `folder`, in the place of what is there."""
    sync_tree(aside)
    former = unfinished_path(folder, "former")
    # one of the two exists at any time: whoever is killed in between has it put back by `sweep`
    if folder.is_dir():
        shutil.rmtree(former, ignore_errors=True)
        os.rename(folder, former)
    os.rename(aside, folder)
    sync_folder(folder.parent)
    shutil.rmtree(former, ignore_errors=True)


def require_writable(path: Path, kind: Literal["file", "folder"], ending: str = "") -> Path:
    """Raise UserError, before any work is done for it, where the output `path` could not be written; returns it.

    Folders above it may be missing, they are made when it is written. ending: what a file's name must end in, so that
    no file of another kind is replaced by a slip.
    """
    if not path.name.lower().endswith(ending):
        raise UserError(f"cannot write {path}: expected a name that ends in {ending}")
    try:
        if kind == "file" and path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"cannot write {path}: it is a device or a pipe, expected a file")
        if kind == "file" and path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder, expected the name of a file")
        if kind == "folder" and path.exists() and not path.is_dir():
            raise UserError(f"cannot write {path}: it is a file, expected a folder or a new name")
        place = path if kind == "folder" else path.parent
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise UserError(f"cannot write {path}: {place} is no folder; choose another folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if len(os.fsencode(path.name)) > _MAX_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except OSError as error:
        raise UserError(cannot_write(path, error)) from error
    return path


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


def sync_tree(folder: Path) -> None:
    """The same for a folder with everything in it."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(folder)


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
        errno.ENOTEMPTY: "something else has been written there meanwhile: choose another name",
        errno.EEXIST: "something else is there: choose another folder",
        errno.ENAMETOOLONG: "choose a shorter name",
    }.get(number or 0, "check the disk and the folder")
    return f"cannot write {path}: {getattr(error, 'strerror', None) or error}; {remedy}"
