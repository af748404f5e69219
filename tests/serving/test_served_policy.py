"""`vla-rl serve`: what clients are answered, what becomes of what they do wrong, and who may come."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="policies over WebSocket: pip install 'vla-rl[serve]'")
pytest.importorskip("msgpack", reason="policies over WebSocket: pip install 'vla-rl[serve]'")

from websockets.exceptions import ConnectionClosed

from serving.doors import PICTURE, ask, connect, request, toy_env, toy_policy
from vla_rl.recipes.serve import conversations
from vla_rl.serving.openpi import policy_server
from vla_rl.serving.openpi_client import (
    PolicyConnection,
    PolicyServerError,
)
from vla_rl.serving.packing import pack, unpack
from vla_rl.serving.served_policy import ServedPolicy
from vla_rl.serving.vla_eval import HarnessConversations
from vla_rl.serving.websocket import (
    PolicyServer,
)


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with PolicyServer(conversations(toy_policy(), toy_env(), None), port=0) as server:
        yield server


@pytest.fixture(scope="module")
def harness_server() -> Iterator[PolicyServer]:
    talk = conversations(toy_policy(), toy_env(), None, "vla-eval")
    with PolicyServer(talk, port=0) as server:
        yield server


# --- what is answered


def test_an_answer_is_what_our_environments_would_apply(server: PolicyServer) -> None:
    from vla_rl.types import Observation

    policy = toy_policy()
    connection = PolicyConnection(server.url)
    seen = Observation(
        PICTURE[None], (request()["prompt"],), np.zeros((1, 4), np.float32), np.zeros(1, np.float32)
    )
    chunk = policy.decode_actions(policy.act(seen, 0.0).tokens)[0]
    np.testing.assert_array_equal(ask(connection), np.repeat(chunk, 3, 0))
    # what a client may leave out, and what is not looked at
    for changes in (
        {"observation/state": None},
        {"observation/state": [0.0, 1, 2, 3]},
        {"observation/wrist_image": PICTURE, "more": [1, {"x": "y"}]},
    ):
        np.testing.assert_array_equal(ask(connection, **changes), np.repeat(chunk, 3, 0))
    assert connection.metadata["action_horizon"] == 6
    assert connection.metadata["vla_rl"]["env"]["suite"] == toy_env().suite
    connection.close()


def test_pictures_of_another_size_are_resampled_and_it_is_said_once(
    server: PolicyServer, caplog: pytest.LogCaptureFixture
) -> None:
    connection = PolicyConnection(server.url)
    with caplog.at_level(logging.WARNING):
        large = ask(connection, **{"observation/image": np.full((224, 224, 3), 90, np.uint8)})
        ask(connection, **{"observation/image": np.full((224, 224, 3), 20, np.uint8)})
    np.testing.assert_array_equal(large, ask(connection))
    assert caplog.text.count("pictures have 224 x 224 pixels, the policy looks at 32 x 32") == 1
    connection.close()


def test_sampling_is_fixed_by_seed_client_and_turn() -> None:
    found = []
    for seed in (1, 1, 2):
        talk = conversations(toy_policy(), toy_env(), None, temperature=2.0, seed=seed)
        with PolicyServer(talk, port=0) as server:
            connection = PolicyConnection(server.url)
            found.append([ask(connection), ask(connection)])
            connection.close()
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0][0] != found[0][1]).any()
    assert (found[0][0] != found[2][0]).any()


def test_two_clients_at_once_have_answers_of_their_own(server: PolicyServer) -> None:
    pictures = [np.full((32, 32, 3), 25 * i, np.uint8) for i in range(8)]
    alone = PolicyConnection(server.url)
    wanted = [ask(alone, **{"observation/image": picture}) for picture in pictures]
    found: dict[int, list[np.ndarray]] = {}

    def play(number: int) -> None:
        mine = PolicyConnection(server.url)
        order = pictures if number else pictures[::-1]
        found[number] = [ask(mine, **{"observation/image": picture}) for picture in order]
        mine.close()

    threads = [threading.Thread(target=play, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found[1], wanted)
    np.testing.assert_array_equal(found[0], wanted[::-1])
    assert len({a.tobytes() for a in wanted}) > 1
    alone.close()


# --- what clients do wrong


BAD_REQUESTS: dict[str, tuple[Any, str]] = {
    "text": ("hello", "expected a binary frame"),
    "garbage": (b"\xc1\xc1", "not msgpack"),
    "half": (pack(request())[:-9], "not msgpack"),
    "deep": (b"\x91" * 5000 + b"\xc0", "not msgpack"),
    "a number": (b"\x05", "expected a map with keys of text"),
    "numbers as keys": (pack({b"x": 1}), "expected a map with keys of text"),
    "pickle": (pack({"x": {b"__ndarray__": True, b"data": b"cos\nsystem\n", b"dtype": "|O", b"shape": [1]}}), "type"),
    "records": (pack({"x": {b"__ndarray__": True, b"data": b"1234", b"dtype": "i4,i4", b"shape": [1]}}), "type"),
    "short data": (pack({"x": {b"__ndarray__": True, b"data": b"1", b"dtype": "<f4", b"shape": [2]}}), "takes 8 bytes"),
    "below zero": (pack({"x": {b"__ndarray__": True, b"data": b"", b"dtype": "<f4", b"shape": [-1]}}), "shape"),
    "no image": (pack(request(**{"observation/image": None})), "observation/image is missing"),
    "floats": (pack(request(**{"observation/image": PICTURE / 255})), "expected uint8 of shape (H, W, 3)"),
    "channels first": (pack(request(**{"observation/image": PICTURE.transpose(2, 0, 1)})), "expected uint8 of shape"),
    "empty image": (pack(request(**{"observation/image": np.zeros((0, 0, 3), np.uint8)})), "expected uint8 of shape"),
    "no words": (pack(request(prompt=" ")), "prompt: expected an instruction"),
    "words as bytes": (pack(request(prompt=b"open")), "prompt: expected an instruction"),
    "NaN": (pack(request(**{"observation/state": np.full(4, np.nan)})), "4 finite numbers"),
    "another state": (pack(request(**{"observation/state": np.zeros(8)})), "4 finite numbers"),
    "control": (pack({"__ctrl__": "explode"}), "expected episode_start or episode_end"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_request_that_cannot_be_used_is_answered_and_the_client_may_go_on(
    server: PolicyServer, name: str
) -> None:
    frame, words = BAD_REQUESTS[name]
    with connect(server.url) as client:
        client.recv()
        client.send(frame)
        answer = client.recv()
        assert isinstance(answer, str)
        assert "cannot be used" in answer
        assert words in answer
        assert "Traceback" not in answer
        client.send(pack(request()))
        assert unpack(client.recv())["actions"].shape == (6, 4)


def test_a_huge_frame_ends_that_client_alone(server: PolicyServer) -> None:
    other = PolicyConnection(server.url)
    with connect(server.url) as client:
        client.recv()
        client.send(bytes(65 * 2**20))
        with pytest.raises(ConnectionClosed):
            client.recv()
    assert ask(other).shape == (6, 4)
    other.close()


def test_a_client_that_goes_without_a_word_leaves_its_place(server: PolicyServer) -> None:
    for _ in range(70):  # more than have room at once
        client = connect(server.url)
        client.recv()
        client.close_socket()
    with connect(server.url) as client:
        client.send(pack(request()))
        client.recv()
        assert isinstance(client.recv(), bytes)


def test_a_policy_that_fails_says_how_and_the_server_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = iter([1.0, [[np.nan] * 4], None, np.zeros((1, 4), np.float32)])

    def act(_: Any) -> Any:
        answer = next(answers)
        if answer is None:
            raise ZeroDivisionError("in the policy")
        return np.asarray(answer, np.float32)

    with policy_server(act, port=0) as server:
        for words in ("shape \\(\\)", "finite actions", "in the policy"):
            client = PolicyConnection(server.url)
            client.send(request())
            with pytest.raises(PolicyServerError, match=words):
                client.receive("actions")
        client = PolicyConnection(server.url)
        client.send(request())
        assert client.receive("actions")["actions"].shape == (1, 4)
        client.close()


def test_a_served_policy_says_where_it_was_trained() -> None:
    env = toy_env()
    talk = conversations(toy_policy(), env, replace(env, held_out=7))
    with PolicyServer(talk, port=0) as server:
        connection = PolicyConnection(server.url)
        assert connection.metadata["vla_rl"]["trained_in"]["held_out"] == 7
        connection.close()


class Longer:
    """A policy of several robots, whose longest takes 7 numbers."""

    action_dim = 7

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def decode_actions_for(self, tokens: Any, instructions: Any) -> np.ndarray:
        own = self._own.decode_actions_for(tokens, instructions)
        return np.pad(own, ((0, 0), (0, 0), (0, 3)))

    encode_actions_for = decode_actions_for


def test_the_robot_that_is_served_decides_how_many_numbers_an_action_has() -> None:
    policy = Longer(toy_policy())
    with PolicyServer(conversations(policy, toy_env(), None), port=0) as server:
        client = PolicyConnection(server.url)
        assert client.metadata["action_dim"] == 4
        client.send(request())
        assert client.receive("actions")["actions"].shape[1] == 4
        client.close()
    talk = conversations(policy, toy_env(), None, "vla-eval")
    with PolicyServer(talk, port=0) as server, connect(server.url) as client:
        client.send(message("hello", {}))
        assert "action_spec" not in unpack(client.recv(timeout=20))["payload"]


@pytest.mark.parametrize(("robot", "told"), [("libero_panda", True), ("gymnasium", False)])
def test_only_liberos_robot_is_described_to_the_harness(
    robot: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = ServedPolicy(Longer(toy_policy()), toy_env())
    monkeypatch.setattr(served, "robot", robot)
    monkeypatch.setattr(served, "action_dim", 7)
    assert ("action_spec" in HarnessConversations(served)._hello()) == told


# --- vla-eval's messages


def message(kind: str, payload: Any, number: int = 7) -> bytes:
    return pack({"type": kind, "payload": payload, "seq": number, "timestamp": 0.0}, keys="text")


def step(value: int = 90, **changes: Any) -> dict[str, Any]:
    picture = np.full((32, 32, 3), value, np.uint8)
    return {"images": {"agentview": picture}, "task_description": "go to the red disc"} | changes


def test_the_harness_gets_an_action_a_step_and_each_episode_begins_afresh(
    server: PolicyServer, harness_server: PolicyServer
) -> None:
    openpi = PolicyConnection(server.url)
    wanted, others = ask(openpi), ask(openpi, **{"observation/image": np.full_like(PICTURE, 10)})
    assert (wanted[0] != others[0]).any()
    with connect(harness_server.url) as client:
        client.send(message("hello", {"protocol_version": 1}))
        hello = unpack(client.recv())
        assert (hello["type"], hello["seq"]) == ("hello", 7)
        assert hello["payload"]["observation_params"]["send_wrist_image"] is False

        def act(number: int, value: int) -> np.ndarray:
            client.send(message("observation", step(value), number))
            answer = unpack(client.recv())
            assert (answer["type"], answer["seq"]) == ("action", number)
            return answer["payload"]["actions"]

        client.send(message("episode_start", {"task": {}}))
        # what it is shown in between is not looked at: the turn is played to its end
        found = [act(number, 90 if number == 0 else 10) for number in range(6)]
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(act(6, 10), others[0])
        client.send(message("episode_end", {}))
        client.send(message("episode_start", {}))
        np.testing.assert_array_equal(act(7, 90), wanted[0])
    openpi.close()


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ("text", "expected a binary frame"),
        (b"\xc1", "not msgpack"),
        (b"\x01", "expected a map"),
        (message("dance", {}), "type: expected one of hello"),
        (message("observation", 3), "payload: expected a map"),
        (message("observation", {}, number=-1), "seq: expected a whole number"),
        (message("observation", {}), "images: expected a map of pictures"),
        (message("observation", step(images={"a": PICTURE, "b": PICTURE})), "to be agentview"),
        (message("observation", step(images={"agentview": 3})), "expected uint8"),
        (message("observation", step(task_description=None)), "task_description: expected"),
        (message("observation", step(states=np.zeros(3))), "states: expected 4 finite"),
        (
            message("observation", step(images={"agentview": {"__image__": True, "format": "png", "data": b"PNG"}})),
            "a picture is no png",
        ),
        (
            message("observation", step(images={"agentview": {"__image__": True, "format": "tiff", "data": b""}})),
            "expected png, jpeg or raw",
        ),
    ],
)  # fmt: skip
def test_a_message_that_cannot_be_used_is_answered_and_the_harness_may_go_on(
    harness_server: PolicyServer, frame: Any, words: str
) -> None:
    with connect(harness_server.url) as client:
        client.send(frame)
        answer = unpack(client.recv())
        assert answer["type"] == "error"
        assert words in answer["payload"]["error"]
        client.send(message("observation", step()))
        assert unpack(client.recv())["type"] == "action"
