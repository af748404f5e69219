"""What a client may say of an observation so that an old one is never answered: its number, and when it was made.

    {"observation/image": ..., "prompt": ..., "vla_rl/sequence": 17, "vla_rl/observed_at": 81.25}

The number and the time must grow from one request to the next. The time is seconds of the client's own clock, which
need not agree with the server's: the server only compares it with the one before. A camera that has stopped gives the
same time again, and is refused. How old an observation is only the client can say (`robot_client`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_rl.serving.packing import WireError, in_words

SEQUENCE, OBSERVED_AT, LAST_ACTION = (
    "vla_rl/sequence",
    "vla_rl/observed_at",
    "vla_rl/last_action",
)
"""Keys of a request beside openpi's; the last is the action that the robot was given last."""


class Freshness:
    """One conversation's numbers and times, which must grow."""

    def __init__(self, required: bool) -> None:
        self._required = required
        self._sequence: int | None = None
        self._observed_at: float | None = None

    def check(self, request: Mapping[str, Any]) -> None:
        """WireError for an observation that is not newer than the last one, or does not say so where it must."""
        sequence, observed_at = request.get(SEQUENCE), request.get(OBSERVED_AT)
        if sequence is None and self._required:
            raise WireError(f"{SEQUENCE} is missing: this server answers numbered requests alone")
        if sequence is not None:
            if type(sequence) is not int or not 0 <= sequence < 2**63:
                raise WireError(f"{SEQUENCE}: expected a whole number, got {in_words(sequence)}")
            if self._sequence is not None and sequence <= self._sequence:
                raise WireError(
                    f"the observation is stale: {SEQUENCE} is {sequence} after {self._sequence}"
                )
        if observed_at is not None:
            if type(observed_at) not in (int, float) or not math.isfinite(observed_at):
                raise WireError(f"{OBSERVED_AT}: expected seconds, got {in_words(observed_at)}")
            if self._observed_at is not None and observed_at <= self._observed_at:
                raise WireError(
                    f"the observation is stale: it was made at {observed_at:g} s, and one of {self._observed_at:g} s "
                    "has been answered"
                )
        self._sequence = self._sequence if sequence is None else sequence
        self._observed_at = self._observed_at if observed_at is None else float(observed_at)


def last_action(request: Mapping[str, Any], action_dim: int) -> np.ndarray | None:
    """The action that the robot was given last, float32 (A,); None where nothing was said. WireError for others."""
    value = request.get(LAST_ACTION)
    if value is None:
        return None
    found = np.asarray(value) if isinstance(value, (np.ndarray, list)) else np.zeros(())
    if found.shape != (action_dim,) or found.dtype.kind not in "fiu":
        raise WireError(f"{LAST_ACTION}: expected {action_dim} numbers, got {in_words(value)}")
    with np.errstate(over="ignore"):
        given = found.astype(np.float32)
    if not np.isfinite(given).all():
        raise WireError(f"{LAST_ACTION}: expected finite numbers")
    return given
