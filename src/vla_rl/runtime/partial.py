"""What is being written lies beside its final place under a hidden name that tells whose it is.

    .<name>.<pid>@<host>.partial    a folder that will take the name <name>
    .<name>.<pid>@<host>.former     the folder that it replaces, until the new one has the name
    .<name>.<pid>@<host>.tmp        the same for a file

So what a killed process left can be told from what a running one is at.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["partial", "former", "tmp"]

# the second and third form: names of before, without a host
_NAMES = (
    re.compile(
        r"\.(?P<name>.+)\.(?P<pid>\d+)@(?P<host>[\w.-]*)\.(?P<kind>partial|former|tmp)", re.A
    ),
    re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>partial|former|tmp)", re.A),
    re.compile(r"\.(?P<name>.+)\.(?P<kind>partial)-(?P<pid>\d+)", re.A),
)
_FORGOTTEN = (
    86_400.0  # seconds without a change after which what another machine left is its no more
)
_CLOCK = 2.0  # seconds by which the start of a process may be wrong


class Unfinished(NamedTuple):
    """What a hidden name says."""

    name: str
    pid: int
    host: str | None
    kind: str


def unfinished_path(target: Path, kind: Kind) -> Path:
    """Where this process writes what will become `target`."""
    return target.with_name(f".{target.name}.{os.getpid()}@{_host()}.{kind}")


def read_name(name: str) -> Unfinished | None:
    """What a file's name says if it is one of these, else None."""
    for form in _NAMES:
        found = form.fullmatch(name)
        if found:
            parts = found.groupdict()
            return Unfinished(parts["name"], int(parts["pid"]), parts.get("host"), parts["kind"])
    return None


def other_writer(target: Path) -> int | None:
    """The process of this machine that is writing `target` at the moment, if it is another one."""
    try:
        entries = list(target.parent.iterdir())
    except OSError:
        return None
    for path in entries:
        found = read_name(path.name)
        if found is None or (found.name, found.host) != (target.name, _host()):
            continue
        if found.kind == "partial" and found.pid != os.getpid() and not _is_left_over(path, found):
            return found.pid
    return None


def sweep(folder: Path, *, all_dead: bool = False) -> None:
    """Remove what dead processes left half-written in `folder`; a folder that was being replaced gets its name back.

    all_dead: nobody else is at work in this folder (its lock is held), so whatever is unfinished was left.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return  # not there, or not ours to read
    for path in entries:
        found = read_name(path.name)
        if found is None or not (all_dead or _is_left_over(path, found)):
            continue
        if found.kind == "former" and not folder.joinpath(found.name).exists():
            path.rename(folder / found.name)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_left_over(path: Path, found: Unfinished) -> bool:
    """Whether the process that was writing `path` is gone."""
    import psutil

    try:
        changed = path.lstat().st_mtime
        if found.host != _host():
            return time.time() - _last_change(path) > _FORGOTTEN
        owner = psutil.Process(found.pid)
        # a number that was given to another process since: containers always begin with the same ones
        return owner.status() == psutil.STATUS_ZOMBIE or owner.create_time() > changed + _CLOCK
    except psutil.NoSuchProcess:
        return True
    except (OSError, psutil.Error):
        return False


def _last_change(path: Path) -> float:
    return max(p.lstat().st_mtime for p in (path, *path.rglob("*")))


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.A)[:64]
