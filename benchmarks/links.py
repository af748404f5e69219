"""Exchanges between two ranks of this machine: seconds of a small one, and bytes a second of a large one.

    python benchmarks/links.py --costs links.json

The ranks meet as those of a training run do (`distributed.torch_world`, gloo). Medians of many exchanges; a rank that
finds its core taken waits, so run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch._C._distributed_c10d import TCPStore

from cost_files import write_costs
from vla_rl.distributed.torch_world import TorchWorld
from vla_rl.planning.costs import LinkCosts

FLOATS = 1_000_000


def timed(work: Callable[[], object], repeats: int) -> float:
    """The median of many calls, in seconds."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def measure(world: TorchWorld, repeats: int) -> LinkCosts:
    """As one of two ranks; both call it."""
    gradients = torch.zeros(FLOATS)
    small = timed(lambda: world.gather(1.0), repeats)
    large = timed(lambda: world.gather_tensors(gradients), repeats)
    received = 4.0 * FLOATS * (world.size - 1)
    return LinkCosts("processes", small, received / large, "measured", "two gloo ranks")


def _other(port: int, repeats: int) -> None:
    world = TorchWorld(TCPStore("127.0.0.1", port, 2, is_master=False), 1, 2, 60.0)
    measure(world, repeats)
    world.leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--costs", type=Path, help="file for `vla-rl plan --costs`")
    arguments = parser.parse_args()
    store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    other = multiprocessing.get_context("spawn").Process(
        target=_other, args=(store.port, arguments.repeats)
    )
    other.start()
    world = TorchWorld(store, 0, 2, 60.0)
    found = measure(world, arguments.repeats)
    world.leave()
    other.join()
    print(f"a small exchange {1e3 * found.latency:.2f} ms, {found.bandwidth / 1e6:.0f} MB/s")
    if arguments.costs is not None:
        write_costs(arguments.costs, links=[found])


if __name__ == "__main__":
    main()
