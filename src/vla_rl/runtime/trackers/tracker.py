"""What a tracker takes, and what it remembers of a run between two sittings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vla_rl.runtime.files import read_json, write_json

PROJECT = "vla-rl"
"""What runs are filed under where nothing else is said: W&B's and trackio's project, MLflow's experiment."""
MEMORY = "trackers.json"


@runtime_checkable
class Tracker(Protocol):
    """Takes the metrics of one iteration after the other. Whatever it raises costs this copy, never the run."""

    forgets: bool
    """Whether `rewind` takes back what came later; a tracker that cannot is not given an iteration twice."""

    begun: bool
    """Whether an earlier sitting began it."""

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of an iteration; all of them are finite."""
        ...

    def attach(self, iteration: int, name: str, files: Sequence[Path]) -> None:
        """Take files that belong to the run: an evaluation (.json), or videos of one (.mp4)."""
        ...

    def rewind(self, iteration: int) -> None:
        """Forget what came after `iteration`, where that is possible."""
        ...

    def close(self) -> None: ...


def recall(folder: Path, tracker: str) -> dict[str, Any]:
    """What `remember` noted of a tracker in a run folder; empty where nothing was."""
    path = folder / MEMORY
    noted = read_json(path).get(tracker) if path.is_file() else None
    return dict(noted) if isinstance(noted, Mapping) else {}


def remember(folder: Path, tracker: str, **noted: Any) -> None:
    """Note in the run folder what the next sitting has to know: the tracker's own id of this run."""
    path = folder / MEMORY
    everything = read_json(path) if path.is_file() else {}
    write_json(path, {**everything, tracker: recall(folder, tracker) | noted})


def evaluation_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """An evaluation as metrics: `eval/greedy/success_rate`, its 95 % interval as `low` and `high`; each task's too."""
    mode = result["sampling"]["mode"]
    numbers = _rates(f"eval/{mode}", result["overall"])
    for task, found in result["tasks"].items():
        numbers |= _rates(f"eval/{mode}/tasks/{plain_name(task)}", found)
    return numbers


def plain_name(name: str) -> str:
    """A name that every tracker takes: a task of a union has its suite in front, with a colon."""
    return re.sub(r"[^\w.\- ]", "-", name)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as `ppo.gamma` -> value; lists stay."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found


def _rates(prefix: str, found: Mapping[str, Any]) -> dict[str, float]:
    low, high = found["interval"]
    return {
        f"{prefix}/success_rate": found["success_rate"],
        f"{prefix}/low": low,
        f"{prefix}/high": high,
    }
