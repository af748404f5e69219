"""Nested state (dicts, lists, tuples, numbers, arrays) as flat named arrays plus plain JSON.

    join_arrays(*split_arrays(tree, name)) == tree

What a checkpoint needs for optimizer states, curricula, simulator snapshots and buffers alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray
Json = Any


def split_arrays(tree: Any, name: str) -> tuple[dict[str, Array], Json]:
    """Take the arrays out of `tree`: ({"<name>/<path>": array}, JSON in which each leaves its name).

    Tuples, and dicts whose keys are integers, come back as what they were; numpy scalars come back
    as Python numbers. Raises TypeError for anything else (no object is ever pickled).
    """
    arrays: dict[str, Array] = {}
    return arrays, _split(tree, name, arrays)


def join_arrays(arrays: Mapping[str, Array], skeleton: Json) -> Any:
    """Undo `split_arrays`; `arrays` may hold other names as well. KeyError if one is missing."""
    if isinstance(skeleton, list):
        return [join_arrays(arrays, item) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if "$array" in skeleton:
        return arrays[skeleton["$array"]]
    if "$tuple" in skeleton:
        return tuple(join_arrays(arrays, item) for item in skeleton["$tuple"])
    if "$items" in skeleton:
        return {key: join_arrays(arrays, item) for key, item in skeleton["$items"]}
    return {key: join_arrays(arrays, item) for key, item in skeleton.items()}


def _split(tree: Any, path: str, arrays: dict[str, Array]) -> Json:
    if isinstance(tree, (torch.Tensor, np.ndarray)):
        arrays[path] = tree
        return {"$array": path}
    if isinstance(tree, np.generic):
        return tree.item()
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, (list, tuple)):
        items = [_split(item, f"{path}/{i}", arrays) for i, item in enumerate(tree)]
        return items if isinstance(tree, list) else {"$tuple": items}
    if isinstance(tree, Mapping):
        pairs = [(key, _split(item, f"{path}/{key}", arrays)) for key, item in tree.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
            return dict(pairs)
        if all(isinstance(key, (str, int)) for key, _ in pairs):
            return {"$items": [list(pair) for pair in pairs]}
    raise TypeError(f"{path}: a checkpoint cannot hold a {type(tree).__name__}")
