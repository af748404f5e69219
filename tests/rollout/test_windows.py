"""Windows of play when they are due, or one ahead of the learning."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from vla_rl.config.rollout import RolloutConfig
from vla_rl.rollout.collector import Collected, WindowGivenUpError
from vla_rl.rollout.windows import Windows


class Played:
    """Collector and engine at once, which note what is asked of them; `gate` holds windows up."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, int]] = []
        self.gate, self.given_up = threading.Event(), threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def renew(self, policy: object, version: int) -> None:
        self.noted.append(("renew", version))

    def collect(self, turns: int, temperature: float, iteration: int) -> Collected:
        while not self.gate.wait(0.01):
            if self.given_up.is_set():
                raise WindowGivenUpError
        if self.error is not None:
            raise self.error
        self.noted.append(("play", iteration))
        return Collected(SimpleNamespace(), [], iteration, {"infer": 1.0})  # pyright: ignore


def windows(played: Any) -> Windows:
    return Windows(played, played, None, RolloutConfig())  # pyright: ignore


def test_a_window_that_is_due_is_played_with_the_newest_weights() -> None:
    played = Played()
    with windows(played) as ours:
        assert [ours.take(i).simulator_steps for i in range(2)] == [0, 1]
    assert played.noted == [("renew", 0), ("play", 0), ("renew", 1), ("play", 1)]


def test_a_window_ahead_is_played_with_the_weights_from_before_and_beside_the_learning() -> None:
    played = Played()
    with windows(played) as ours:
        ours.take(0)
        played.gate.clear()
        ours.begin(1)
        assert ours.ahead  # and this thread is free
        played.gate.set()
        taken = ours.take(1)
        assert taken.simulator_steps == 1
        assert taken.waited is not None
        ours.begin(2)
        ours.take(2)
    # window 2 is played while window 1 is learned, with what one window of learning has made
    assert played.noted == [
        ("renew", 0), ("play", 0), ("play", 1), ("renew", 1), ("play", 2),
    ]  # fmt: skip


def test_what_ends_a_window_ahead_ends_who_takes_it() -> None:
    played = Played()
    with windows(played) as ours:
        played.error = ValueError("no simulator")
        ours.begin(1)
        with pytest.raises(ValueError, match="no simulator"):
            ours.take(1)


def test_a_window_that_nobody_wants_any_more_is_given_up() -> None:
    played = Played()
    played.gate.clear()
    with windows(played) as ours:
        ours.begin(1)
        thread = next(t for t in threading.enumerate() if t.name == "window")
    thread.join(10)
    assert not thread.is_alive()
    assert ("play", 1) not in played.noted
