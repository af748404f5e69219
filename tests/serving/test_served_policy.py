"""`vla-rl serve`: what clients are answered, what becomes of what they do wrong, and who may come."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="policies over WebSocket: pip install 'vla-rl[serve]'")
pytest.importorskip("msgpack", reason="policies over WebSocket: pip install 'vla-rl[serve]'")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as open_socket

from serving.doors import PICTURE, request, toy_env, toy_policy
from vla_rl.cli import main
from vla_rl.recipes.serve import conversations
from vla_rl.serving.openpi import policy_server
from vla_rl.serving.openpi_client import (
    PolicyConnection,
    PolicyServerError,
    WrongPolicyError,
    actions_of,
)
from vla_rl.serving.packing import pack, unpack
from vla_rl.serving.websocket import (
    KEY_VARIABLE,
    AddressError,
    PolicyServer,
    is_loopback,
    read_key,
    supported,
)

KEY = "a-key-of-enough-letters"


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with PolicyServer(conversations(toy_policy(), toy_env(), None), port=0) as server:
        yield server


@pytest.fixture(scope="module")
def harness_server() -> Iterator[PolicyServer]:
    talk = conversations(toy_policy(), toy_env(), None, "vla-eval")
    with PolicyServer(talk, port=0) as server:
        yield server


def connect(url: str, **headers: Any) -> Any:
    options = supported(open_socket, legacy=True, proxy=None)
    return open_socket(url, compression=None, max_size=None, **options, **headers)


def ask(connection: PolicyConnection, **changes: Any) -> np.ndarray:
    connection.send(request(**changes))
    return actions_of(connection.receive("actions"), connection.url, 4, 6)


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


# --- who may come


def test_other_machines_need_a_key() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "127.8.8.8")] == [True] * 4
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "", "10.0.0.1", "example.org"))
    for host in ("0.0.0.0", "::", ""):
        with pytest.raises(AddressError, match="needs a key"):
            PolicyServer(print, host, 0)
    PolicyServer(print, "0.0.0.0", 0, key=KEY).stop()


def test_who_has_not_the_key_is_sent_away() -> None:
    with policy_server(lambda _: np.zeros((5, 4), np.float32), port=0, key=KEY) as server:
        for given in ("", "another-key-of-enough-letters", KEY + "x", KEY[:-1]):
            with pytest.raises(WrongPolicyError, match="wants another key"):
                PolicyConnection(server.url, given)
        for header in (f"Bearer {KEY}", KEY, "Api-Key \u00e9\u00e9"):
            with pytest.raises(InvalidStatus):
                connect(server.url, additional_headers={"Authorization": header})
        headers = [("Authorization", f"Api-Key {KEY}"), ("Authorization", "Api-Key x")]
        with pytest.raises(InvalidStatus):
            connect(server.url, additional_headers=headers)
        PolicyConnection(server.url, KEY).close()
        for path in ("/healthz", "/health"):  # which tells nothing but that it is there
            with urllib.request.urlopen(server.url.replace("ws", "http") + path) as answer:
                assert answer.read() == b"OK\n"


def test_a_page_in_a_browser_is_sent_away(server: PolicyServer) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        connect(server.url, origin="http://evil.example")


def test_one_client_more_than_has_room_is_told() -> None:
    class Remembers:
        def infer(self, _: Any) -> Any: ...
        def reset(self) -> None: ...

    with policy_server(Remembers(), port=0) as server:
        first = PolicyConnection(server.url)
        assert first.metadata == {"__ctrl__": True, "clients": 1}
        with pytest.raises(PolicyServerError, match="1013 too many clients"):
            PolicyConnection(server.url)
        first.close()


def test_a_policy_for_each_client_remembers_its_own() -> None:
    class Counts:
        def __init__(self) -> None:
            self.count = 0.0

        def infer(self, _: Any) -> np.ndarray:
            self.count += 1
            return np.full((6, 4), self.count, np.float32)

        def reset(self) -> None:
            self.count = 0.0

    with policy_server(Counts, port=0, per_client=True) as server:
        one, two = PolicyConnection(server.url), PolicyConnection(server.url)
        assert [ask(c)[0, 0] for c in (one, one, two)] == [1, 2, 1]
        one.control("episode_start")
        assert [ask(c)[0, 0] for c in (one, two)] == [1, 2]
        for client in (one, two):
            client.close()


def test_keys_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key(None) == ""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert read_key(None) == KEY
    file = tmp_path / "key"
    for text in (
        "",
        "short",
        "with a blank in it, long enough",
        "\u00e9" * 20,
        "x" * 600,
        "x" * 9000,
    ):
        file.write_text(text)
        with pytest.raises(AddressError, match=r"does not do|no key file"):
            read_key(file)
    file.write_text(KEY[::-1] + "\n")
    file.chmod(0o644)
    assert read_key(file) == KEY[::-1]
    assert "chmod 600" in caplog.text
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(AddressError):
            read_key(path)


# --- the command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "policy"
    toy_policy().save(folder)
    return folder


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_command_cleanly(checkpoint: Path, number: int) -> None:
    words = ["serve", str(checkpoint), "--suite", "toy", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "vla_rl", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "COLUMNS": "300"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = ""
        while "Ctrl-C ends it" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        url = "ws://127.0.0.1:" + said.split("ws://127.0.0.1:")[1].split()[0]
        client = PolicyConnection(url)
        client.send(request())
        assert client.receive("actions")["actions"].shape[1] == 4
        process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == 128 + number
    assert "Traceback" not in said + rest
    assert f"has ended the server at {url}" in rest
    with pytest.raises(PolicyServerError, match="has hung up"):
        client.receive("nothing")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--host 0.0.0.0", "needs a key (--key-file FILE, or VLA_RL_POLICY_KEY)"),
        ("--key-file gone", "cannot read the key file gone"),
        ("--host nowhere.invalid", "needs a key"),
        ("--suite mt5x", "mt5x"),
        ("--suite libero-goal", "4 numbers an action, but libero-goal"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(
    checkpoint: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(checkpoint), "--suite", "toy", "--port", "0", *words.split()]) == 2
    err = capsys.readouterr().err
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_port_in_use_is_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(checkpoint), "--suite", "toy", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def test_the_small_server_needs_no_more_than_three_packages() -> None:
    """As a program of another environment uses it: neither torch nor the packages that this one is made with."""
    hidden = ["torch", "jaxtyping", "annotated_types", "pydantic", "psutil", "rich", "PIL"]
    code = (
        "import importlib.abc, sys\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in sys.argv[1:]:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from vla_rl.serving.openpi import serve_policy\n"
        "loaded = {m.partition('.')[0] for m in sys.modules} & {'numpy', 'msgpack', 'websockets', 'vla_rl', 'tyro'}\n"
        "print(sorted(loaded))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *hidden], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['msgpack', 'numpy', 'vla_rl', 'websockets']"


def test_a_served_policy_says_where_it_was_trained() -> None:
    env = toy_env()
    talk = conversations(toy_policy(), env, replace(env, held_out=7))
    with PolicyServer(talk, port=0) as server:
        connection = PolicyConnection(server.url)
        assert connection.metadata["vla_rl"]["trained_in"]["held_out"] == 7
        connection.close()
