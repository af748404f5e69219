"""A new run folder appears whole: locked, with config.json and run.json, in one rename."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_rl.config.errors import UserError
from vla_rl.runtime.files import begin_folder, cannot_write, sync_folder, write_json
from vla_rl.runtime.lock import FolderLock

CONFIG, PROVENANCE = "config.json", "run.json"
_OF_A_START = (".lock", CONFIG, PROVENANCE)


def new_run_folder(
    folder: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> FolderLock:
    """Make `folder` and return the lock on it.

    A folder that is there already may hold what a run leaves that failed before its first iteration, nothing else.
    Raises UserError where it holds more, is in use, or cannot be written.
    """
    try:
        if folder.exists() or folder.is_symlink():
            return _take_over(folder, config, provenance)
        aside = begin_folder(folder)
        try:
            lock = _fill(aside, config, provenance)
            _rename(aside, folder, lock)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return lock
    except OSError as error:
        raise UserError(cannot_write(folder, error)) from error


def _take_over(
    folder: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]
) -> FolderLock:
    held = FolderLock(folder)
    try:
        entries = list(folder.iterdir())
        if any(map(holds_something, entries)):
            raise UserError(
                f"{folder} exists and holds a run: go on with `vla-rl train --resume {folder}`, "
                "or choose another name"
            )
        if folder.is_symlink() or folder.is_mount():
            # it cannot be replaced, only filled: the configuration, which makes it a run, comes last
            write_json(folder / PROVENANCE, provenance)
            write_json(folder / CONFIG, config)
            return held
        aside = begin_folder(folder)
        try:
            lock = _fill(aside, config, provenance)
            for entry in entries:
                entry.unlink(missing_ok=True)
            _rename(aside, folder, lock)  # onto an empty folder
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        held.release()
        raise
    held.release()
    return lock


def remove_unused(folder: Path) -> None:
    """Remove a run folder of this process in which nothing has happened yet; any other stays."""
    with contextlib.suppress(OSError):
        entries = list(folder.iterdir())
        if folder.is_symlink() or any(map(holds_something, entries)):
            return
        for entry in entries:
            entry.unlink()
        folder.rmdir()


def holds_something(path: Path) -> bool:
    """Whether `path`, in a run folder, is more than what a run leaves that failed before its first iteration."""
    if path.is_symlink() or path.is_dir():
        return True
    return path.stat().st_size > 0 and path.name not in _OF_A_START


def _fill(aside: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> FolderLock:
    lock = FolderLock(aside)
    write_json(aside / PROVENANCE, provenance)
    write_json(aside / CONFIG, config)
    return lock


def _rename(aside: Path, folder: Path, lock: FolderLock) -> None:
    try:
        os.rename(aside, folder)
    except OSError as error:
        lock.release()
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UserError(
                f"{folder} has just been made by another run: choose another name"
            ) from error
        raise
    lock.moved_to(folder)
    sync_folder(folder.parent)
