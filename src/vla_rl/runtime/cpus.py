"""How many CPU cores this process may use. The only place that counts them.

The machine's number is not it: a container on 64 cores may have a quota of two, a batch job may be bound to four.
Programs that start a process per core of the machine are then many times slower, not faster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/proc/self/cgroup")
_MOUNTS = Path("/proc/self/mountinfo")


def available_cpus() -> int:
    """CPU cores this process may use: its affinity, and the CPU quota of its control groups; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, round(quota)))


def cpu_quota() -> float | None:
    """CPU seconds a second that Linux's control groups (version 1 or 2) allow this process, None without a limit.

    A container runtime sets it (`docker run --cpus`, Kubernetes' limits, systemd's CPUQuota). The strictest of the
    group and of those around it counts.
    """
    quotas = [
        quota
        for mount, group in _cpu_groups()
        for folder in (mount / group, *(mount / group).parents)
        if folder.is_relative_to(mount) and (quota := _quota_in(folder)) is not None
    ]
    return min(quotas, default=None)


def _cpu_groups() -> Iterator[tuple[Path, str]]:
    """Where the hierarchies with CPU limits are mounted, and this process's group below each."""
    try:
        groups = [line.split(":", 2) for line in _CGROUPS.read_text().splitlines()]
        mounts = [line.split(" ") for line in _MOUNTS.read_text().splitlines()]
    except OSError:
        return
    # "4:cpu,cpuacct:/docker/abc" in version 1, "0::/user.slice" in version 2
    of_version_1 = next((g[2] for g in groups if len(g) == 3 and "cpu" in g[1].split(",")), None)
    of_version_2 = next((g[2] for g in groups if len(g) == 3 and not g[1]), None)
    for fields in mounts:
        if "-" not in fields or fields.index("-") + 3 >= len(fields):
            continue
        kind, options = fields[fields.index("-") + 1], fields[fields.index("-") + 3].split(",")
        root, point = fields[3], Path(fields[4])
        if kind == "cgroup2" and of_version_2 is not None:
            yield point, _below(of_version_2, root)
        elif kind == "cgroup" and "cpu" in options and of_version_1 is not None:
            yield point, _below(of_version_1, root)


def _below(group: str, root: str) -> str:
    """The group's path below a mount that shows the hierarchy from `root` on; a container sees only its own part."""
    path, top = PurePosixPath(group), PurePosixPath(root)
    return str(path.relative_to(top)) if path.is_relative_to(top) and ".." not in path.parts else ""


def _quota_in(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        # "max" in version 2 and -1 in version 1: no limit
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
