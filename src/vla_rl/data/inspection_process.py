"""The child's end of `inspection`: look at a file's own description of itself, and say what it says.

Lines of JSON come on standard input and go to standard output. The process ends when its parent does, or when nothing
was asked for a while. It imports nothing of the project: it has to start quickly.
"""

from __future__ import annotations

import json
import select
import sys
from typing import Any

IDLE_SECONDS = 60
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
"""Bytes of one value in memory; of a text that of its number in the dictionary."""
DEEPEST, MOST_NODES = 6, 100_000


def inspect_parquet(path: str) -> dict[str, list[int]]:
    """Bytes that each column takes in memory, row group by row group."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    sizes: dict[str, list[int]] = {name: [] for name in names}
    if len(sizes) < len(names):
        raise ValueError("two columns have one name")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.num_columns != len(names):
            raise ValueError(f"row group {number} has {group.num_columns} columns of {len(names)}")
        for i, name in enumerate(names):
            leaf = group.column(i)
            width = WIDTHS.get(leaf.physical_type, 4)
            size = max(leaf.total_uncompressed_size, 0) + max(leaf.num_values, 0) * width
            sizes[name].append(size)
    return sizes


def inspect_hdf5(path: str) -> dict[str, list[int]]:
    """Walk through the structure of a file, following no link; nothing is returned but that it can be walked."""
    import h5py

    left = MOST_NODES

    def walk(group: Any, depth: int) -> None:
        nonlocal left
        dict(group.attrs)
        for name in group:
            left -= 1
            if left < 0 or not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            node = group[name]
            if isinstance(node, h5py.Dataset):
                _ = node.shape, node.dtype, node.external, node.is_virtual
                node.id.get_storage_size()
            elif isinstance(node, h5py.Group) and depth < DEEPEST:
                walk(node, depth + 1)

    with h5py.File(path, "r") as file:
        walk(file, 0)
    return {}


INSPECTORS = {"parquet": inspect_parquet, "hdf5": inspect_hdf5}


def main() -> None:
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0]:
        line = sys.stdin.readline()
        if not line:
            return
        kind, path = json.loads(line)
        try:
            answer: dict[str, Any] = {"sizes": INSPECTORS[kind](path)}
        except (
            Exception
        ) as error:  # whatever it is, the parent meets it again or turns it into words
            answer = {"error": str(error)[:1000]}
        print(json.dumps(answer), flush=True)
