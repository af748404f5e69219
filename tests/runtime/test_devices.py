"""Devices, threads and memory of this machine."""

from __future__ import annotations

import mmap
import subprocess
import sys

import numpy as np
import pytest
import torch

from vla_rl.config import ConfigError
from vla_rl.runtime.cpus import available_cpus
from vla_rl.runtime.devices import resolve_device, use_threads
from vla_rl.runtime.memory import resident_memory


def test_auto_is_a_gpu_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


def test_a_device_that_is_not_there_or_not_known_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"'cpuu' is not known. Did you mean 'cpu'\?"):
        resolve_device("cpuu")
    with pytest.raises(ConfigError, match=r"'cuda:63' was asked for, but torch sees \d+ CUDA"):
        resolve_device("cuda:63")


def test_threads_are_set_inside_the_block_only() -> None:
    before = torch.get_num_threads()
    with use_threads(1) as count:
        assert count == torch.get_num_threads() == 1
        with use_threads(3):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with use_threads(0) as count:
        assert count == available_cpus()
    with pytest.raises(ConfigError, match="threads must be 0"), use_threads(-1):
        pass
    assert torch.get_num_threads() == before


CHILD = "import sys; block = bytearray(64 * 2**20); print('ready', flush=True); sys.stdin.read()"


def test_memory_grows_with_what_is_allocated_here_and_in_children() -> None:
    alone = resident_memory(children=False)
    children = resident_memory() - alone
    # pages of its own: the allocator may serve an array from what earlier tests have freed
    pages = mmap.mmap(-1, 64 * 2**20)
    block = np.frombuffer(pages, dtype=np.uint8)
    block[:] = 1
    assert resident_memory(children=False) - alone > 60 * 2**20
    del block
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert resident_memory() - resident_memory(children=False) > 60 * 2**20
    finally:
        child.communicate("")
    # of the children alone: whether this process returns what it freed is the C library's affair
    assert resident_memory() - resident_memory(children=False) < children + 60 * 2**20
