"""How much memory a run takes, its simulator processes included, and how much is free."""

from __future__ import annotations

import ctypes
from pathlib import Path

import psutil

from vla_rl.config.errors import UserError

SPARE = 0.9
"""Share of the free memory that one thing may take; the rest is for what else the program does."""
_CGROUP = Path("/sys/fs/cgroup")


def resident_memory(*, children: bool = True) -> int:
    """Bytes of resident memory of this process and, with `children`, of all its descendants.

    Pages that several processes share count once for each. A child that ends meanwhile counts as 0.
    """
    own = psutil.Process()
    processes = [own, *(own.children(recursive=True) if children else [])]
    return sum(_resident(process) for process in processes)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0


def available_memory() -> int:
    """Bytes that can still be taken without swapping: what the machine has free, or the container if that is less."""
    free = int(psutil.virtual_memory().available)
    limit, used = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    if limit is None or used is None:
        return free
    # pages of files that were read are counted as used, and given up at once
    return min(free, max(limit - used + _given_up(), 0))


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Raise UserError, stating the need and what is free, where `needed` bytes do not fit into memory."""
    free = available_memory()
    if needed > SPARE * free:
        raise UserError(
            f"{what} takes {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free. {remedy}"
        )


def _cgroup_number(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _given_up() -> int:
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees, instead of returning it and faulting it in again.

    glibc returns freed blocks of a few megabytes to the system at once; every forward pass then pays for fresh,
    zeroed pages (measured: 1,200 page faults per `act` of 16 observations and 47,000 per training step of 256,
    12 and 16 % of their time). Process-wide, so entry points call it, not this module. Returns False where the
    C library has no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    trim_threshold, mmap_threshold = -1, -3
    return bool(mallopt(mmap_threshold, 32 << 20)) and bool(mallopt(trim_threshold, 1 << 30))
