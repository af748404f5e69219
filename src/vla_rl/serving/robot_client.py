"""A robot's side of a served policy: an action in bounded time at every step of the control loop, or a stop.

    settings = RobotSettings(action_dim=7, deadline=0.4, max_age=0.5, on_stop="hold", hold=[0] * 6 + [1])
    with RobotClient("ws://127.0.0.1:8000", settings) as client:
        client.warm_up(observation)                  # the first answer may wait for a compiler; nothing moves
        while running:
            decision = client.action(observation(), observed_at=time.monotonic())
            robot.command(decision.action)           # within `deadline` seconds, whatever the server does

It is a dead-man switch in software. Whatever goes wrong (no fresh action in time, a stale observation, a server that
dies, NaN, an action beyond the limits) stops it: `action` then raises StoppedError or returns the hold action, and goes
on doing so until `resume` is called. It is no emergency stop: that is a switch in the robot's power supply.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from vla_rl.config.errors import UserError
from vla_rl.serving.freshness import LAST_ACTION, OBSERVED_AT, SEQUENCE
from vla_rl.serving.limits import ActionLimits, LimitKeeper, RefusedError
from vla_rl.serving.openpi import LIMITS
from vla_rl.serving.openpi_client import (
    PolicyConnection,
    PolicyServerError,
    WrongPolicyError,
    actions_of,
)
from vla_rl.serving.packing import WireError

LOG = logging.getLogger(__name__)

WARM_UP = 600.0
"""Seconds that the first answer may take: a policy may have to be compiled."""

PATIENCE = 5.0
"""Seconds that a server may take to let the client in, at least."""


class StoppedError(UserError):
    """The client has stopped, and stays so until `RobotClient.resume`."""


@dataclass(frozen=True)
class RobotSettings:
    """What a robot asks of its policy's server. ValueError for settings that do not fit each other."""

    action_dim: int
    """A, numbers of an action."""
    deadline: float = 0.5
    """Seconds in which `action` returns, whatever the server does."""
    max_age: float = 1.0
    """Seconds from an observation to the moment at which an action that was decided on it may still be played."""
    replan: int = 1
    """Actions of each answer that are played before the next is asked for."""
    on_stop: Literal["raise", "hold"] = "raise"
    """What `action` does when it has stopped: raise StoppedError, or return the hold action."""
    hold: Sequence[float] | Literal["last"] = ()
    """The hold action, A numbers: zeros where actions are differences. "last": the last action again, where they are
    positions. Needed for on_stop "hold"."""
    on_loss: Literal["stop", "finish"] = "stop"
    """What becomes of an answer's remaining actions when the server dies: nothing, or they are played while they are
    not older than max_age."""
    limits: ActionLimits | None = None
    """Kept here too, whatever the server does. None: no limits at this end."""

    def __post_init__(self) -> None:
        for name in ("deadline", "max_age"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected seconds above 0, got {getattr(self, name)}")
        if self.action_dim < 1 or self.replan < 1:
            raise ValueError("action_dim and replan: expected whole numbers of at least 1")
        if self.on_stop not in ("raise", "hold") or self.on_loss not in ("stop", "finish"):
            raise ValueError("expected on_stop raise or hold, and on_loss stop or finish")
        if self.limits is not None and self.limits.action_dim != self.action_dim:
            raise ValueError(
                f"the limits are for actions of {self.limits.action_dim} numbers, not {self.action_dim}"
            )
        if self.hold != "last":
            self._check_hold(np.asarray(self.hold, np.float64).reshape(-1))

    def _check_hold(self, hold: np.ndarray) -> None:
        if not len(hold) and self.on_stop == "raise":
            return
        if len(hold) != self.action_dim or not np.isfinite(hold).all():
            raise ValueError(
                f'hold: expected {self.action_dim} finite numbers, or "last", for on_stop hold, got {len(hold)} numbers'
            )
        limits, wanted = self.limits, hold.astype(np.float32)
        if limits is not None and ((wanted < limits.least) | (wanted > limits.most)).any():
            raise ValueError("hold: the hold action is itself beyond the limits")


@dataclass(frozen=True)
class Decision:
    """What the robot is to be given now."""

    action: Float32[np.ndarray, " A"]
    fresh: bool
    """Whether the policy has decided it; else it is the hold action."""
    why: str = ""
    """Of the hold action: what has stopped the client."""


@dataclass(frozen=True)
class _Answer:
    """What is left of an answer."""

    actions: deque[np.ndarray]
    observed_at: float


class RobotClient:
    """One robot's conversation with a served policy. Not for several threads at once."""

    def __init__(
        self,
        url: str,
        settings: RobotSettings,
        key: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect. clock: of `observed_at`, in seconds.

        PolicyServerError or WrongPolicyError where there is no such server, or it serves another robot.
        """
        self.url, self.settings, self._key, self._clock = url, settings, key, clock
        self.keeper = LimitKeeper(settings.limits, "this robot")
        """What the limits did at this end."""
        self.stopped = ""
        """Why the client has stopped; empty while it has not."""
        self._sequence, self._observed_at = 0, -math.inf
        self._left = _Answer(deque(), -math.inf)
        self._last: np.ndarray | None = None
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._connection = self._connected()

    def __enter__(self) -> RobotClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm_up(self, observation: Mapping[str, Any], timeout: float = WARM_UP) -> None:
        """Ask once and throw the answer away, so that the first action comes in time. Raises what went wrong."""
        patient = PolicyConnection(self.url, self._key, timeout)
        try:
            patient.send(self._stripped(observation) | {SEQUENCE: 0})
            actions_of(patient.receive("actions"), self.url, self.settings.action_dim, 1)
        finally:
            patient.close()

    def begin_episode(self, position: Sequence[float] | None = None) -> None:
        """Forget what was decided before.

        position: where actions are positions, the one at which the robot stands: the first action's change is measured
        from it. Without it the first action of an episode has no limit on its change.
        """
        self._left = _Answer(deque(), -math.inf)
        self._last = None if position is None else self._checked_position(position)
        self.keeper.last = self._last
        told = self._connection.knows_episodes or LIMITS in self._connection.metadata
        if told and not self.stopped:
            try:
                self._in_time(self._connection.begin_episode)
            except (PolicyServerError, TooLate) as error:
                self._stop(f"the server did not hear that an episode begins ({error})")

    def action(self, observation: Mapping[str, Any], observed_at: float) -> Decision:
        """The action for now, in at most `deadline` seconds.

        observation: as `openpi` has it. observed_at: when it was made, seconds of the client's clock.
        StoppedError where the client has stopped and `on_stop` is raise.
        """
        if not self.stopped:
            try:
                return self._decided(observation, observed_at)
            except (PolicyServerError, WrongPolicyError, RefusedError, WireError) as error:
                self._stop(str(error))
            except TooLate:
                self._stop(f"no fresh action within the deadline of {self.settings.deadline:g} s")
        return self._held()

    def resume(self) -> None:
        """Go on after a stop, with a new connection; for a person to call who has seen the robot stand still."""
        connection = self._connected()
        self._abandon()
        self._connection, self.stopped = connection, ""
        self._worker.shutdown(wait=False, cancel_futures=True)  # it may still wait for the old one
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._sequence, self._left = 0, _Answer(deque(), -math.inf)

    def close(self) -> None:
        self._abandon()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _decided(self, observation: Mapping[str, Any], observed_at: float) -> Decision:
        settings = self.settings
        self._require_fresh(observed_at)
        lost = not self._connection.is_open
        if lost and settings.on_loss == "stop":
            raise PolicyServerError(f"{self.url} has gone")
        left = self._left
        if not left.actions or self._clock() - left.observed_at > settings.max_age:
            if lost:
                raise PolicyServerError(f"{self.url} has gone, and what it decided last is played")
            self._left = left = self._asked(observation, observed_at)
        (kept,) = self.keeper(left.actions.popleft()[None])
        self._last = kept
        return Decision(kept, True)

    def _require_fresh(self, observed_at: float) -> None:
        """RefusedError for an observation that is old, or no newer than the one before."""
        if not math.isfinite(observed_at):
            raise RefusedError(f"observed_at: expected seconds, got {observed_at}")
        age = self._clock() - observed_at
        if age > self.settings.max_age:
            raise RefusedError(
                f"the observation is stale: {age:.3g} s old, and {self.settings.max_age:g} s are allowed"
            )
        if age < 0:
            raise RefusedError(
                "the observation is from the future: another clock than the client's"
            )
        if observed_at <= self._observed_at:
            raise RefusedError("the observation is stale: no newer than the one before")
        self._observed_at = observed_at

    def _asked(self, observation: Mapping[str, Any], observed_at: float) -> _Answer:
        self._sequence += 1
        number, connection = self._sequence, self._connection
        request = self._stripped(observation) | {SEQUENCE: number, OBSERVED_AT: float(observed_at)}
        if self._last is not None:
            request[LAST_ACTION] = self._last

        def ask() -> Any:
            connection.send(request)
            return connection.receive("actions")

        reply = self._in_time(ask)
        actions = actions_of(reply, self.url, self.settings.action_dim, self.settings.replan)
        if reply.get(SEQUENCE, number) != number:
            raise PolicyServerError(f"{self.url} answered another question than the last one")
        if self._clock() - observed_at > self.settings.max_age:
            raise RefusedError(
                f"the answer came when its observation was older than {self.settings.max_age:g} s"
            )
        return _Answer(deque(actions), observed_at)

    def _in_time(self, work: Callable[[], Any]) -> Any:
        """What `work` returns; concurrent.futures' TimeoutError where it takes longer than the deadline."""
        future: Future[Any] = self._worker.submit(work)
        return future.result(self.settings.deadline)

    def _stop(self, why: str) -> None:
        self.stopped, self._left = why, _Answer(deque(), -math.inf)
        LOG.error("stopped: %s", why)
        self._abandon()

    def _held(self) -> Decision:
        settings = self.settings
        if settings.on_stop == "raise":
            raise StoppedError(f"stopped: {self.stopped}")
        if settings.hold != "last":
            self._last = np.asarray(settings.hold, np.float32)
        if self._last is None:
            raise StoppedError(f"stopped: {self.stopped}; there is no last action to hold")
        self.keeper.last = self._last
        return Decision(self._last, False, self.stopped)

    def _abandon(self) -> None:
        """Hang up without waiting; who still waits for an answer is waked."""
        threading.Thread(target=self._connection.close, daemon=True).start()

    def _connected(self) -> PolicyConnection:
        # longer than the deadline, which `_in_time` keeps: who waits in vain is waked by hanging up
        return PolicyConnection(self.url, self._key, max(PATIENCE, 2 * self.settings.deadline))

    def _checked_position(self, position: Sequence[float]) -> np.ndarray:
        found = np.asarray(position, np.float32).reshape(-1)
        if len(found) != self.settings.action_dim or not np.isfinite(found).all():
            raise ValueError(f"position: expected {self.settings.action_dim} finite numbers")
        return found

    @staticmethod
    def _stripped(observation: Mapping[str, Any]) -> dict[str, Any]:
        own = (SEQUENCE, OBSERVED_AT, LAST_ACTION)
        return {name: value for name, value in observation.items() if name not in own}
