"""The dataset_statistics.json of a checkpoint: which actions the tokens stand for, by dataset.

    {"libero_spatial": {"action": {"q01": [...], "q99": [...], "mask": [...], "mean": ..., ...}, ...}, ...}

Format: openvla/openvla@c8f03f4, prismatic/vla/datasets/rlds/utils/data_utils.py. OpenVLA's config.json holds the same
under `norm_stats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen, MinLen

from vla_rl.config.errors import UserError
from vla_rl.policies.action_tokens import select_statistics
from vla_rl.runtime.external import parse_json, read_bytes

STATISTICS_FILE = "dataset_statistics.json"
MOST_BYTES = 16 * 2**20
"""Those of OpenVLA's pretraining, 27 datasets, take 0.1 MB."""
_MOST_DIMENSIONS = 1024

_Quantiles = Annotated[
    tuple[Annotated[float, Ge(-1e9), Le(1e9)], ...], MinLen(1), MaxLen(_MOST_DIMENSIONS)
]


@dataclass(frozen=True)
class _Action:
    q01: _Quantiles
    q99: _Quantiles
    mask: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class DatasetStatistics:
    """What is needed of one dataset's entry."""

    action: _Action


@dataclass(frozen=True)
class _Config:
    norm_stats: dict[str, DatasetStatistics] | None = None


def read_statistics(path: Path) -> dict[str, Any]:
    """The file's contents, every dataset's checked. Raises UserError naming file, dataset and key."""
    data = read_bytes(path, inside=path.parent, max_bytes=MOST_BYTES)
    content = parse_json(data, source=path)
    _require_names(content, path)
    parse_json(data, dict[str, DatasetStatistics], source=path)
    _check(content, path)
    return content


def statistics_of_config(data: bytes, path: Path) -> dict[str, Any]:
    """The same of `norm_stats` in `data`, the config.json at `path`; empty if it has none."""
    content = parse_json(data, source=path).get("norm_stats")
    _require_names(content, path)
    parse_json(data, _Config, source=path)
    _check(content or {}, path)
    return content or {}


def _require_names(norm_stats: Any, source: Path) -> None:
    """Raise UserError where one dataset's statistics lack the dataset's name around them."""
    action = norm_stats.get("action") if isinstance(norm_stats, dict) else None
    if isinstance(action, dict) and "action" not in action:
        raise UserError(
            f"{source}: the dataset's name is missing around the statistics: expected "
            '{"my_dataset": {"action": {"q01": ..., "q99": ...}}}, got {"action": ...}. '
            "Wrap them in an object with the dataset's name as its key"
        )


def _check(norm_stats: Mapping[str, Any], source: Path) -> None:
    """Raise UserError, naming `source`, unless there are usable action statistics for every dataset."""
    for name in norm_stats:
        try:
            select_statistics(norm_stats, name)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
