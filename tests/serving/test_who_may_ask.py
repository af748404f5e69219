"""Who may ask a served policy, and the command that serves one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="policies over WebSocket: pip install 'vla-rl[serve]'")
pytest.importorskip("msgpack", reason="policies over WebSocket: pip install 'vla-rl[serve]'")

from websockets.exceptions import InvalidStatus

from serving.doors import ask, connect, request, toy_policy
from vla_rl.cli import main
from vla_rl.serving.openpi import policy_server
from vla_rl.serving.openpi_client import PolicyConnection, PolicyServerError, WrongPolicyError
from vla_rl.serving.websocket import (
    KEY_VARIABLE,
    AddressError,
    PolicyServer,
    is_loopback,
    read_key,
)

KEY = "a-key-of-enough-letters"


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with policy_server(lambda _: np.zeros((6, 4), np.float32), port=0) as server:
        yield server


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
