"""Which device computes, and on how many CPU threads. torch is imported on use only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vla_rl.config.errors import ConfigError, nearest
from vla_rl.runtime.cpus import available_cpus

if TYPE_CHECKING:
    import torch


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` is a GPU where there is one (the first; each of several ranks has its own), else the CPU.

    Otherwise torch's own names.

    Raises ConfigError for a name torch does not know and for a GPU this machine does not have.
    """
    import torch

    if name == "auto":
        return _own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        known = ["auto", "cpu", "cuda", "cuda:0"]
        raise ConfigError(f"device {name!r} is not known.{nearest(name, known)}") from None
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return _own_gpu()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device {name!r} was asked for, but torch sees {count} CUDA device(s): "
            "use `auto` or `cpu`, or install a CUDA build of torch"
        )
    return device


def _own_gpu() -> torch.device:
    import torch

    return torch.device("cuda", torch.cuda.current_device())


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
