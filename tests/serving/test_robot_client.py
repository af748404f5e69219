"""A robot's client and its server: whatever goes wrong, the robot is held, and stays held until somebody resumes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="policies over WebSocket: pip install 'vla-rl[serve]'")
pytest.importorskip("msgpack", reason="policies over WebSocket: pip install 'vla-rl[serve]'")

from vla_rl.serving.limits import ActionLimits, Rules
from vla_rl.serving.openpi import policy_server
from vla_rl.serving.openpi_client import PolicyConnection, PolicyServerError
from vla_rl.serving.robot_client import RobotClient, RobotSettings, StoppedError
from vla_rl.serving.websocket import PolicyServer

SEEN = {"observation/image": np.zeros((8, 8, 3), np.uint8), "prompt": "stand still"}
PATIENT = 60.0
"""Seconds: nothing in these tests is late by accident, however busy the machine."""

IMPATIENT = {"deadline": 0.2}
"""A fifth of what an answer takes at the least: on a busy machine it takes longer still."""


@contextmanager
def served(act: Callable[[dict[str, Any]], Any], **options: Any) -> Iterator[PolicyServer]:
    server = policy_server(act, port=0, **options)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()


def ramp(_: dict[str, Any]) -> np.ndarray:
    """Four actions: 0.1, 0.2, 0.3, 0.4 in both numbers."""
    return np.linspace(0.1, 0.4, 4, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)


def patient(**changes: Any) -> RobotSettings:
    whole: dict[str, Any] = {"action_dim": 2, "deadline": PATIENT, "max_age": PATIENT, "replan": 4}
    return RobotSettings(**(whole | changes))


def now(client: RobotClient) -> Any:
    time.sleep(0.001)  # a new time stamp
    return client.action(SEEN, time.monotonic())


def wait_until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.01)


def test_actions_come_one_by_one_and_the_next_answer_when_they_are_played() -> None:
    asked: list[dict[str, Any]] = []

    def act(observation: dict[str, Any]) -> np.ndarray:
        asked.append(observation)
        return ramp(observation)

    with served(act) as server, RobotClient(server.url, patient()) as client:
        client.warm_up(SEEN)
        found = [now(client) for _ in range(5)]
    wanted = np.array([0.1, 0.2, 0.3, 0.4, 0.1], np.float32)
    np.testing.assert_allclose([one.action[0] for one in found], wanted, rtol=1e-6)
    assert all(one.fresh for one in found)
    assert len(asked) == 3
    # what is between client and server is no business of the policy
    assert all(set(one) == set(SEEN) for one in asked)


def test_the_change_is_measured_from_what_was_played_not_from_what_was_sent() -> None:
    limits = ActionLimits(2, change=[0.125])
    settings = patient(replan=2, limits=None)
    with served(ramp, limits=limits) as server, RobotClient(server.url, settings) as client:
        assert client._connection.metadata["vla_rl/limits"]["change"] == [0.125, 0.125]
        client.begin_episode(position=[0.5, 0.5])
        found = [float(now(client).action[0]) for _ in range(4)]
    # 0.5 -> 0.375 -> 0.25 | 0.125 (0.1 is wanted) would be beyond 0.4 - 0.125, had the whole answer counted
    np.testing.assert_allclose(found, [0.375, 0.25, 0.125, 0.2], rtol=1e-6)


@pytest.mark.parametrize("on_stop", ["raise", "hold"])
def test_no_fresh_action_in_time_stops_and_stays_stopped(on_stop: str) -> None:
    slow = threading.Event()

    def act(observation: dict[str, Any]) -> np.ndarray:
        if slow.is_set():
            time.sleep(1.0)
        return ramp(observation)

    settings = patient(**IMPATIENT, replan=1, on_stop=on_stop, hold=[0, 1])
    with served(act) as server, RobotClient(server.url, settings) as client:
        slow.set()
        for _ in range(2):  # the second time nobody is asked
            if on_stop == "raise":
                with pytest.raises(StoppedError, match=r"deadline of 0.2 s"):
                    now(client)
            else:
                held = now(client)
                np.testing.assert_array_equal(held.action, [0, 1])
                assert not held.fresh
                assert "deadline" in held.why
        assert client.stopped


def test_after_a_stop_it_goes_on_when_somebody_says_so() -> None:
    wrong = [True]

    def act(observation: dict[str, Any]) -> np.ndarray:
        if wrong[0]:
            raise RuntimeError("the camera is gone")
        return ramp(observation)

    with served(act) as server, RobotClient(server.url, patient()) as client:
        with pytest.raises(StoppedError, match="camera is gone"):
            now(client)
        wrong[0] = False
        with pytest.raises(StoppedError, match="camera is gone"):
            now(client)
        client.resume()
        assert now(client).fresh


@pytest.mark.parametrize("on_loss", ["stop", "finish"])
def test_a_server_that_dies_in_the_middle_of_a_chunk(on_loss: str) -> None:
    settings = patient(on_loss=on_loss, on_stop="hold", hold="last")
    with served(ramp) as server, RobotClient(server.url, settings) as client:
        first = now(client)
        server.stop()
        wait_until(lambda: not client._connection.is_open)
        rest = [now(client) for _ in range(5)]
    fresh = [one.fresh for one in rest]
    assert fresh == ([False] * 5 if on_loss == "stop" else [True] * 3 + [False] * 2)
    last = first if on_loss == "stop" else rest[2]
    np.testing.assert_array_equal(rest[-1].action, last.action)
    assert "has gone" in rest[-1].why


def test_actions_of_an_old_observation_are_not_played() -> None:
    clock = [100.0]
    with (
        served(ramp) as server,
        RobotClient(server.url, patient(max_age=1.0), clock=lambda: clock[0]) as client,
    ):
        first = [client.action(SEEN, clock[0]).action[0]]
        clock[0] += 0.6
        first.append(client.action(SEEN, clock[0]).action[0])
        clock[0] += 0.6  # what was decided 1.2 s ago is dropped, and the policy is asked again
        first.append(client.action(SEEN, clock[0]).action[0])
    np.testing.assert_allclose(first, [0.1, 0.2, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("observed_at", "said"),
    [
        (98.0, "2 s old"),
        (100.0, "no newer"),
        (101.0, "from the future"),
        (np.nan, "expected seconds"),
    ],
)
def test_a_stale_observation_stops(observed_at: float, said: str) -> None:
    with (
        served(ramp) as server,
        RobotClient(server.url, patient(max_age=1.0), clock=lambda: 100.0) as client,
    ):
        client.action(SEEN, 100.0)
        with pytest.raises(StoppedError, match=said):
            client.action(SEEN, observed_at)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_never_leaves_the_server(bad: float) -> None:
    with (
        served(lambda _: np.full((4, 2), bad, np.float32)) as server,
        RobotClient(server.url, patient()) as client,
        pytest.raises(StoppedError, match="finite"),
    ):
        now(client)


def test_limits_hold_at_this_end_too() -> None:
    settings = patient(limits=ActionLimits(2, high=[0.25], beyond="refuse"))
    with served(ramp) as server, RobotClient(server.url, settings) as client:
        assert [now(client).fresh for _ in range(2)] == [True, True]
        with pytest.raises(StoppedError, match=r"number 0 is 0.3"):
            now(client)


def ask(connection: PolicyConnection, **more: Any) -> Any:
    connection.send(SEEN | more)
    return connection.receive("actions")


def test_the_server_answers_no_observation_twice() -> None:
    with served(ramp, rules=Rules(fresh=True)) as server:
        connection = PolicyConnection(server.url)
        numbered = {"vla_rl/sequence": 3, "vla_rl/observed_at": 5.0}
        assert ask(connection, **numbered)["vla_rl/sequence"] == 3
        for again, said in (
            ({"vla_rl/sequence": 3}, "stale: vla_rl/sequence is 3 after 3"),
            ({"vla_rl/sequence": 4, "vla_rl/observed_at": 5.0}, "stale: it was made at 5 s"),
            ({}, "vla_rl/sequence is missing"),
            ({"vla_rl/sequence": "4"}, "expected a whole number"),
            ({"vla_rl/sequence": 4, "vla_rl/observed_at": np.nan}, "expected seconds"),
        ):
            with pytest.raises(PolicyServerError, match=said):
                ask(connection, **again)
        assert "actions" in ask(connection, **{"vla_rl/sequence": 4})
        connection.close()


def test_the_servers_time_outs() -> None:
    def late(observation: dict[str, Any]) -> np.ndarray:
        time.sleep(0.2)
        return ramp(observation)

    with served(late, rules=Rules(idle=0.5, answer=0.05)) as server:
        connection = PolicyConnection(server.url)
        with pytest.raises(PolicyServerError, match=r"0.05 s are allowed"):
            ask(connection)
        wait_until(lambda: not connection.is_open)  # silent for longer than `idle`
        with pytest.raises(PolicyServerError, match=r"hung up.*nothing was asked for 0.5 s"):
            ask(connection)


def test_what_the_limits_did_is_counted_at_the_server() -> None:
    with served(ramp, limits=ActionLimits(2, high=[0.25])) as server:
        connection = PolicyConnection(server.url)
        assert ask(connection)["actions"].max() == np.float32(0.25)
        with pytest.raises(PolicyServerError, match="vla_rl/last_action: expected 2 numbers"):
            ask(connection, **{"vla_rl/last_action": np.zeros(3)})
        connection.close()
        totals = server._converse.totals  # type: ignore[attr-defined]
        wait_until(lambda: totals.counts["actions"] == 4)
        assert totals.counts["bounds"] == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"deadline": 0.0},
        {"max_age": np.inf},
        {"replan": 0},
        {"on_stop": "hold"},
        {"hold": [np.nan, 0]},
        {"hold": [2, 0], "limits": ActionLimits(2, high=[1])},
        {"limits": ActionLimits(3, high=[1])},
        {"on_loss": "hope"},
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|limits"):
        patient(**wrong)
