"""All trackers of a run: one that fails is said once and left out, and none is given an iteration twice."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from vla_rl.config.errors import UserError
from vla_rl.config.run import AUTO
from vla_rl.runtime.extras import install, installed, need
from vla_rl.runtime.files import read_json
from vla_rl.runtime.trackers.packages import packages_of
from vla_rl.runtime.trackers.tracker import Tracker, evaluation_numbers, recall, remember

logger = logging.getLogger(__name__)
CLASSES: Mapping[str, str] = {
    "tensorboard": "tensorboard_events:TensorBoardEvents",
    "wandb": "weights_and_biases:WandbRun",
    "mlflow": "mlflow_runs:MlflowRun",
    "trackio": "trackio_runs:TrackioRun",
}
"""Name in `run.trackers`, which is also the package's -> the class, by its module beside this one."""
_TITLES = {
    "tensorboard": "TensorBoard",
    "wandb": "W&B",
    "mlflow": "MLflow",
    "trackio": "trackio",
}


class Trackers:
    """What a run's metrics are copied to.

    A tracker that cannot be opened or fails later, whatever way its library does, is said once and left out: a copy
    must not end a run. When the run is resumed it is tried again, and given the iterations it has missed.
    """

    def __init__(self, folder: Path, names: Sequence[str], logged: int = 0) -> None:
        """Open them. logged: the iteration that was logged last, in an earlier sitting.

        UserError if a package is missing; of `auto` it is only missed.
        """
        need(*packages_of(names), purpose="run.trackers")
        self._folder = folder
        self._open: dict[str, Tracker] = {}
        self._has: dict[str, int] = {}
        for name in _present(names):
            try:
                noted = recall(folder, name).get("has")
                tracker = _class_of(name)(folder)
                self._has[name] = (logged if noted is None else noted) if tracker.begun else 0
                self._open[name] = tracker
            except Exception as error:
                logger.warning(
                    "%s cannot be used (%s): metrics.jsonl has everything", _TITLES[name], _why(error)
                )  # fmt: skip

    def log(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Hand on the finite ones."""
        finite = {name: float(v) for name, v in metrics.items() if v is not None}
        finite = {name: value for name, value in finite.items() if math.isfinite(value)}
        for name, tracker in [*self._open.items()]:
            if not tracker.forgets and iteration <= self._has[name]:
                continue
            if self._act(name, lambda t: t.log(iteration, finite)):
                self._has[name] = iteration

    def log_evaluation(self, iteration: int, file: Path, videos: Sequence[Path]) -> None:
        """Hand on an evaluation: its numbers with intervals, the file, and videos of it. Not twice to one tracker."""
        if not self._open:
            return
        numbers, label = evaluation_numbers(read_json(file)), file.stem
        for name in [*self._open]:
            again = self._open[name].forgets
            seen = [] if again else recall(self._folder, name).get("evaluations", [])
            if f"{label}@{iteration}" in seen:
                continue
            done = self._act(name, lambda t: t.log(iteration, numbers))
            done = done and self._act(name, lambda t: t.attach(iteration, f"eval/{label}", [file]))
            if done and videos:
                self._act(name, lambda t: t.attach(iteration, f"videos/{label}", videos))
            if done and not again:
                remember(self._folder, name, evaluations=[*seen, f"{label}@{iteration}"])

    def rewind(self, iteration: int, earlier: Sequence[Mapping[str, Any]]) -> None:
        """Go back to `iteration`; earlier: the metrics up to it, for a tracker that does not have all of them."""
        for name in [*self._open]:
            self._act(name, lambda t: t.rewind(iteration))
            for entry in earlier:
                if entry["iteration"] > self._has[name] and name in self._open:
                    self._catch_up(name, entry)
            self._note(name, None)  # what a kill leaves is known by metrics.jsonl

    def close(self) -> None:
        for name in [*self._open]:
            if self._act(name, lambda t: t.close()):
                self._note(name, self._has[name])

    def _catch_up(self, name: str, entry: Mapping[str, Any]) -> None:
        left_out = ("iteration", "wall_seconds")
        numbers = {k: float(v) for k, v in entry.items() if k not in left_out and v is not None}
        if self._act(name, lambda t: t.log(entry["iteration"], numbers)):
            self._has[name] = entry["iteration"]

    def _act(self, name: str, act: Callable[[Tracker], object]) -> bool:
        if name not in self._open:
            return False
        try:
            act(self._open[name])
        except Exception as error:
            del self._open[name]
            logger.warning(
                "%s failed and is left out from here on (%s). metrics.jsonl goes on and has everything",
                _TITLES[name], _why(error),
            )  # fmt: skip
            self._note(name, self._has[name])
            return False
        return True

    def _note(self, name: str, has: int | None) -> None:
        """Note up to where a tracker has everything: the next sitting catches up from there.

        Where that cannot be written, as on a full disk, the next sitting leaves a gap in this copy.
        """
        try:
            if recall(self._folder, name).get("has") != has:
                remember(self._folder, name, has=has)
        except (OSError, UserError) as error:
            logger.debug("%s: %s", name, error)


def _present(names: Sequence[str]) -> list[str]:
    """The names with `auto` replaced by what is there."""
    found = [name for name in names if name != AUTO]
    if AUTO in names and "tensorboard" not in found:
        if installed("tensorboard"):
            return ["tensorboard", *found]
        logger.info(
            "TensorBoard is not installed (%s): metrics.jsonl only", install(["tensorboard"])
        )
    return found


def _class_of(name: str) -> Callable[[Path], Tracker]:
    module, _, class_name = CLASSES[name].partition(":")
    return getattr(import_module(f"{__package__}.{module}"), class_name)


def _why(error: Exception) -> str:
    """The error in one line; what libraries raise has many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
