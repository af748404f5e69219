"""How much memory a run takes, its simulator processes included."""

from __future__ import annotations

import psutil


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
