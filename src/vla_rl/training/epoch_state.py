"""A training over epochs that can be stopped at any batch and goes on bit for bit: fine-tuning, reward models.

    with open_epochs(out, config, result=out / "policy") as run, graceful_stop() as stop:
        state = EpochState(run, learner, "sft", data)
        state.restore()
        for epoch in range(state.epoch, epochs + 1):
            rng, batches = ...                                  # the same in every sitting
            for batch in state.left(batches, rng):
                state.done(learner.update(batch), stop)
            state.save()                                        # before anything else that takes long
            state.log_epoch(validate, stop)
        ...                                                     # write the result
        state.finish()

What is saved are the trained weights, not a policy: the model itself is made again as it was at the start.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from vla_rl.config.errors import UserError
from vla_rl.config.serialize import differences
from vla_rl.runtime.checkpoint import (
    CheckpointError,
    flatten_optimizer,
    read_checkpoint,
    restore_optimizer,
)
from vla_rl.runtime.new_run import CONFIG, holds_something
from vla_rl.runtime.progress import note
from vla_rl.runtime.run_folder import CHECKPOINTS, Run, read_config
from vla_rl.runtime.seeding import (
    numpy_rng_state,
    restore_numpy_rng,
    restore_torch_rng,
    torch_rng_state,
)
from vla_rl.runtime.signals import StopRequest
from vla_rl.runtime.trees import join_arrays, split_arrays

B = TypeVar("B")


class EpochLearner(Protocol):
    """What `EpochState` needs of a learner."""

    @property
    def parameters(self) -> Sequence[torch.nn.Parameter]: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    steps: int


def require_unused(out: Path) -> None:
    """Raise UserError if the folder holds anything: a result is never overwritten."""
    if out.exists() and (out.is_file() or any(path.name != ".lock" for path in out.iterdir())):
        raise UserError(f"{out} exists and is not empty: give another --out, or remove it")


def is_unfinished(out: Path, config: Any, result: Path) -> bool:
    """Whether `out` is a run of the same settings that was stopped before it had its `result`.

    False where it is free. UserError where it holds anything else: a finished run, one with other settings, a file.
    """
    if not out.is_dir() or not any(map(holds_something, out.iterdir())):
        if out.exists() and not out.is_dir():
            require_unused(out)
        return False
    if result.exists() or not (out / CONFIG).is_file():
        require_unused(out)
    found = differences(read_config(out, type(config)), config)
    changed = [
        f"{name} {old!r} (now {new!r})" for name, (old, new) in found.items() if name != "out"
    ]
    if changed:
        raise UserError(
            f"{out} holds a training that was stopped, with {', '.join(changed)}: give the same to go on with it, or "
            "another --out, or remove it"
        )
    return True


def open_epochs(out: Path, config: Any, result: Path) -> Run:
    """Go on in the run that was stopped in `out`, or make a new one; see `is_unfinished` for what is refused."""
    if is_unfinished(out, config, result):
        return Run.open(out, sys.argv, keep=1)
    return Run.create(out.parent, out.name, config, sys.argv, keep=1)


def fingerprint(*arrays: np.ndarray) -> str:
    """Tells arrays from others: a hash of their contents."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class EpochState:
    """How far the training is: the epoch, its batches so far, and what the updates reported."""

    def __init__(self, run: Run, learner: EpochLearner, prefix: str, data: dict[str, Any]) -> None:
        """prefix: that of the metrics. data: JSON that tells the data from others, with which a run does not go on."""
        self.run, self.learner, self.prefix = run, learner, prefix
        self.epoch, self.batches = 1, 0
        self.logged: dict[str, float] = {}
        """Metrics of the epoch that was logged last."""
        self._data, self._started = data, time.perf_counter()
        self._history: list[dict[str, float]] = []
        self._rng: np.random.Generator | None = None
        self._saved_rng: dict[str, Any] | None = None

    def left(self, batches: Iterable[B], rng: np.random.Generator | None = None) -> Iterator[B]:
        """The batches of this epoch that are still to do.

        rng: a generator that is drawn from for each batch, while it is done; it is put where the others left it.
        """
        if self._saved_rng is not None and rng is not None:
            restore_numpy_rng(rng, self._saved_rng)
        self._rng, self._saved_rng, self._started = rng, None, time.perf_counter()
        return itertools.islice(batches, self.batches, None)

    def done(self, reported: dict[str, float], stop: StopRequest) -> None:
        """Count a batch, and keep what its update reported. Where a stop is requested, save and raise `Stopped`."""
        self.batches += 1
        self._history.append(reported)
        if stop.requested:
            self.save()
            self._end(stop)

    def log_epoch(self, measure: Callable[[], dict[str, float]], stop: StopRequest) -> None:
        """Log what the updates of this epoch reported, on average, what `measure` returns, and the seconds.

        Measuring is given up where a stop is requested, and done again in the next sitting; then `Stopped` is raised.
        """
        metrics: dict[str, float] = {"epoch": self.epoch}
        for name in self._history[0] if self._history else ():
            metrics[f"{self.prefix}/{name}"] = float(np.mean([h[name] for h in self._history]))
        seconds = time.perf_counter() - self._started
        stop.run(lambda: metrics.update(measure()))
        self._end(stop)
        self.run.log(self.epoch, metrics | {f"{self.prefix}/seconds": seconds})
        self.logged = metrics
        self.epoch, self.batches = self.epoch + 1, 0
        self._history, self._rng = [], None

    def _end(self, stop: StopRequest) -> None:
        stop.end(
            f"stopped by {stop.signal_name} in epoch {self.epoch}, after {self.learner.steps} steps; everything is "
            "saved, and the same command goes on"
        )

    def save(self) -> None:
        """Write where the training is, in the place of what was saved before."""
        tree = {
            "epoch": self.epoch,
            "batches": self.batches,
            "steps": self.learner.steps,
            "history": self._history,
            "rng": None if self._rng is None else numpy_rng_state(self._rng),
            "random": torch_rng_state(),
            "weights": list(self.learner.parameters),
            "data": self._data,
        }
        tensors, state = split_arrays(tree, "state")
        parts, state["optimizer"] = flatten_optimizer(self.learner.optimizer)
        # numbered by the epochs that are logged, as metrics are cut back to them
        self.run.save(self.epoch - 1, tensors | parts, state)

    def restore(self) -> None:
        """Go on where the run was stopped, or at the start where nothing had been saved yet."""
        if not self.run.resumed:
            return
        folder = self.run.latest()
        if folder is None:
            self.run.rewind(0)
            note(f"{self.run.folder}: nothing had been saved yet; it begins anew")
            return
        saved = read_checkpoint(folder)
        state = join_arrays(saved.tensors, saved.state)
        if state["data"] != self._data:
            raise UserError(
                f"the data have changed since the training in {self.run.folder} was stopped: put them back, or give "
                "another --out"
            )
        parameters = list(self.learner.parameters)
        if [p.shape for p in parameters] != [w.shape for w in state["weights"]]:
            raise CheckpointError(f"{folder} belongs to another model: give another --out")
        with torch.no_grad():
            for parameter, weights in zip(parameters, state["weights"], strict=True):
                parameter.copy_(weights)
        restore_optimizer(self.learner.optimizer, saved.tensors, saved.state["optimizer"])
        self.learner.steps = state["steps"]
        self.epoch, self.batches = state["epoch"], state["batches"]
        self._history, self._saved_rng = state["history"], state["rng"]
        restore_torch_rng(state["random"])
        self.run.rewind(self.epoch - 1)
        note(f"{self.run.folder}: goes on in epoch {self.epoch}, after {self.learner.steps} steps")

    def finish(self) -> None:
        """Remove what was saved on the way: the result is there."""
        shutil.rmtree(self.run.folder / CHECKPOINTS, ignore_errors=True)
