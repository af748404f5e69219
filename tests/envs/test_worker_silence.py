"""Slow and hung told apart, by the two ends of a worker's pipe, with a clock that the test turns."""

from __future__ import annotations

import math

import pytest

from vla_rl.config import EnvConfig
from vla_rl.envs.known_answers import ChainEnv
from vla_rl.envs.vector import worker, worker_process
from vla_rl.envs.vector.repeated_errors import PlayedAgain
from vla_rl.envs.vector.shared_memory import SlotArrays
from vla_rl.types import EpisodeSpec

START = 10.0  # seconds that loading a task may take


class Clock:
    """Stands for the clock of both ends: time passes when a simulator works, and while its answer is awaited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for module in (worker, worker_process):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now


class Line:
    """A pipe whose messages are on their way until their time has come."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.messages = clock, []

    def send(self, message: tuple) -> None:
        self.messages.append((self.clock.now, message))

    def poll(self, seconds: float) -> bool:
        arrives = self.messages[0][0] if self.messages else math.inf
        in_time = arrives <= self.clock.now + seconds
        self.clock.now = max(self.clock.now, arrives) if in_time else self.clock.now + seconds
        return in_time

    def recv(self) -> tuple:
        return self.messages.pop(0)[1]


def messages_of_slow_resets(clock: Clock, seconds: list[float]) -> Line:
    """What a worker sends while its environments take so long to reset."""

    class SlowEnv(ChainEnv):
        def reset(self, spec: EpisodeSpec) -> None:
            clock.now += seconds[spec.initial_state]
            super().reset(spec)

    slots = range(len(seconds))
    config = EnvConfig(
        num_envs=len(seconds), image_size=11, action_repeat=1, action_chunk=1, horizon=8
    )
    line = Line(clock)
    arrays = SlotArrays(len(seconds), config.image_size, 4)
    envs = {slot: SlowEnv(config) for slot in slots}
    again = PlayedAgain("chain", lambda: ChainEnv(config))
    at_work = worker.SlotWorker(envs, arrays, config.horizon, line, again)
    line.send(
        ("done", 1, at_work.reset(list(slots), [EpisodeSpec("chain", slot) for slot in slots]))
    )
    return line


def listener(clock: Clock, line: Line) -> worker_process.WorkerProcess:
    """The parent's end of a worker that was given work at time 0."""
    parent = object.__new__(worker_process.WorkerProcess)
    clock.now = parent._since = 0.0
    parent._connection, parent._start_timeout = line, START
    return parent


def test_slow_is_not_hung(monkeypatch: pytest.MonkeyPatch):
    """A batch longer than step_timeout whose single resets are shorter: the worker says that it is alive."""
    clock = Clock(monkeypatch)
    line = messages_of_slow_resets(clock, [1.5] * 4)
    assert listener(clock, line).receive(1.9)[:2] == ("done", 1)
    assert clock.now == 6.0


def test_silent_for_longer_than_the_timeout_is_hung(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    line = messages_of_slow_resets(clock, [1.5, 2.5])
    with pytest.raises(worker_process.WorkerLostError, match=r"no answer for 1\.9 seconds"):
        listener(clock, line).receive(1.9)
    assert clock.now == 1.5 + 1.9


def test_loading_a_task_for_the_first_time_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """A worker that was just restarted would otherwise meet the same limit again, and never get on."""
    clock = Clock(monkeypatch)
    line = messages_of_slow_resets(clock, [9.0, 1.5])
    assert listener(clock, line).receive(1.9)[:2] == ("done", 1)
    clock.now = 0.0
    line = messages_of_slow_resets(clock, [11.0])
    with pytest.raises(
        worker_process.WorkerSilentError, match=r"no answer for 10 seconds while it"
    ) as error:
        listener(clock, line).receive(1.9)
    assert error.value.starting
