"""Which device computes, and on how many CPU threads. torch is imported on use only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vla_rl.config.errors import ConfigError, nearest

if TYPE_CHECKING:
    import torch

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cpus() -> int:
    """CPU cores this process may use: its affinity, and its container's quota where there is one."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` is the first GPU where there is one, else the CPU; otherwise torch's own names.

    Raises ConfigError for a name torch does not know and for a GPU this machine does not have.
    """
    import torch

    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        known = ["auto", "cpu", "cuda", "cuda:0"]
        raise ConfigError(f"device {name!r} is not known.{nearest(name, known)}") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device {name!r} was asked for, but torch sees {count} CUDA device(s): "
            "use `auto` or `cpu`, or install a CUDA build of torch"
        )
    return device


@contextmanager
def use_threads(count: int) -> Iterator[int]:
    """Let torch compute on `count` threads (0: all available cores) inside the block; yields the number.

    Threads beyond the cores that simulators leave free make torch many times slower, not faster.
    """
    import torch

    if count < 0:
        raise ConfigError(f"threads must be 0 (all cores) or more, got {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(count or available_cpus())
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
