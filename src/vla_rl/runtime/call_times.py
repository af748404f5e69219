"""What calls cost by how many samples they had: sums alone, however many calls there are."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class CallTimes:
    """Sums over calls, enough to fit `seconds = fixed + each * samples` (planning.calibration)."""

    calls: float = 0.0
    samples: float = 0.0
    squares: float = 0.0
    """Of samples."""
    seconds: float = 0.0
    products: float = 0.0
    """Of samples and seconds."""

    def add(self, samples: float, seconds: float) -> None:
        """One call."""
        self.merge(CallTimes(1.0, samples, samples**2, seconds, samples * seconds))

    def merge(self, other: CallTimes) -> None:
        """The calls of `other` too."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))

    def take(self) -> CallTimes:
        """The sums so far; counting starts anew."""
        taken = CallTimes()
        taken.merge(self)
        for entry in fields(self):
            setattr(self, entry.name, 0.0)
        return taken

    def metrics(self, prefix: str) -> dict[str, float]:
        """The sums by name, `<prefix>/calls` and so on."""
        return {f"{prefix}/{entry.name}": getattr(self, entry.name) for entry in fields(self)}

    @staticmethod
    def of_metrics(rows: Iterable[Mapping[str, float]], prefix: str) -> CallTimes:
        """The sums of several rows of `metrics`; rows that have none count nothing."""
        total = CallTimes()
        names = [entry.name for entry in fields(CallTimes)]
        for row in rows:
            numbers = [row.get(f"{prefix}/{name}") for name in names]
            if all(isinstance(number, int | float) for number in numbers):
                total.merge(CallTimes(*numbers))  # type: ignore[arg-type]
        return total


def own_seconds(device: torch.device) -> float:
    """A clock of the work that this thread gives to `device`; only differences mean anything.

    On the CPU the thread's processor time: waiting for a core that somebody else has does not count. On a GPU the wall,
    after the work given to it so far is done.
    """
    if device.type == "cpu":
        return time.thread_time()
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()
