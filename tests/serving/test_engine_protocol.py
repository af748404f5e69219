"""Server and client on a real socket, with our own policy behind it: answers, new weights, and what is refused."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.policies import make_observation, make_policy, sharpen
from vla_rl.config import ConfigError, UserError
from vla_rl.policies import OpenVLAPolicy
from vla_rl.policies.openvla.exporting import MergedWeights
from vla_rl.serving import wire
from vla_rl.serving.addresses import TOKEN_VARIABLE, Address
from vla_rl.serving.backend import Question
from vla_rl.serving.client import EngineClient
from vla_rl.serving.own import OwnBackend
from vla_rl.serving.server import EngineServer
from vla_rl.serving.wire import ConnectionLostError, EngineError, Message, ProtocolError

CPU = torch.device("cpu")
TEMPERATURE = 1.5


@contextmanager
def serving(backend: Any, address: Address) -> Iterator[EngineServer]:
    server = EngineServer(backend, address)
    ended: list[BaseException] = []

    def serve() -> None:
        try:
            server.serve()
        except RuntimeError as error:
            ended.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


@pytest.fixture(scope="module")
def policy() -> OpenVLAPolicy:
    return sharpen(make_policy())


@pytest.fixture
def address(tmp_path: Path) -> Address:
    return Address.of_path(tmp_path / "socket")


@pytest.fixture
def server(policy: OpenVLAPolicy, address: Address) -> Iterator[EngineServer]:
    with serving(OwnBackend(sharpen(make_policy())), address) as server:
        yield server


@pytest.fixture
def client(server: EngineServer) -> Iterator[EngineClient]:
    with EngineClient(server.address, 60.0) as client:
        yield client


def question(policy: OpenVLAPolicy, rows: int = 5) -> dict[str, torch.Tensor]:
    seen = make_observation(rows)
    prompts = policy.processor.prompts(seen.instructions, CPU)
    return {
        "images": policy.processor.raw(seen.images, CPU).to(torch.uint8),
        "ids": prompts.ids,
        "lengths": torch.from_numpy(prompts.lengths),
        "seeds": torch.arange(rows),
    }


def bins(policy: OpenVLAPolicy, ids: torch.Tensor) -> torch.Tensor:
    return policy.description.model.language.text_vocab - 1 - ids


def test_log_probs_are_those_of_the_learner(client: EngineClient, policy: OpenVLAPolicy) -> None:
    ids, log_probs = client.act(**question(policy), count=8, temperature=TEMPERATURE)
    with torch.no_grad():
        told = policy.evaluate(make_observation(5), bins(policy, ids), TEMPERATURE).log_probs
    torch.testing.assert_close(log_probs, told, atol=1e-5, rtol=0)


def test_greedy_tokens_are_the_policys_own(client: EngineClient, policy: OpenVLAPolicy) -> None:
    ids, log_probs = client.act(**question(policy), count=8, temperature=0.0)
    assert torch.equal(bins(policy, ids), policy.act(make_observation(5), 0.0).tokens)
    with torch.no_grad():
        told = policy.evaluate(make_observation(5), bins(policy, ids), 1.0).log_probs
    torch.testing.assert_close(log_probs, told, atol=1e-5, rtol=0)


def test_a_row_depends_on_its_seed_and_on_no_other_row(
    client: EngineClient, policy: OpenVLAPolicy
) -> None:
    asked = question(policy)
    ids, _ = client.act(**asked, count=8, temperature=3.0)
    alone = {name: tensor[2:3] for name, tensor in asked.items()}
    assert torch.equal(client.act(**alone, count=8, temperature=3.0)[0], ids[2:3])
    other = asked | {"seeds": asked["seeds"] + 100}
    assert not torch.equal(client.act(**other, count=8, temperature=3.0)[0], ids)


def learned(seed: int) -> tuple[OpenVLAPolicy, dict[str, torch.Tensor]]:
    policy = sharpen(make_policy(seed=seed))
    weights = MergedWeights(policy)
    return policy, {name: weights.tensor(name) for name in weights.base}


def test_new_weights_are_played_with_from_the_next_question_on(
    client: EngineClient, server: EngineServer, policy: OpenVLAPolicy
) -> None:
    assert client.status().version is None
    other, tensors = learned(1)
    status = client.renew(tensors, 7)
    assert (status.version, client.status().version) == (7, 7)
    assert status.checksum == wire.checksum(tensors)
    ids, log_probs = client.act(**question(policy), count=8, temperature=TEMPERATURE)
    with torch.no_grad():
        told = other.evaluate(make_observation(5), bins(other, ids), TEMPERATURE).log_probs
        before = policy.evaluate(make_observation(5), bins(other, ids), TEMPERATURE).log_probs
    torch.testing.assert_close(log_probs, told, atol=1e-5, rtol=0)
    assert float((before - told).abs().max()) > 0.1  # the weights matter
    with EngineClient(server.address, 60.0) as second:
        assert second.status() == client.status()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: t | {"no.such.weight": torch.ones(2)}, "the model has no 'no.such.weight'"),
        (lambda t: t | {HEAD: t[HEAD][1:]}, "expected numbers of shape"),
        (lambda t: t | {HEAD: t[HEAD].to(torch.int64)}, "int64"),
        (lambda t: t | {HEAD: torch.full_like(t[HEAD], torch.nan)}, "not finite"),
        (lambda t: {}, "empty set"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(
    spoil: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    reason: str,
    client: EngineClient,
    policy: OpenVLAPolicy,
) -> None:
    before = client.act(**question(policy), count=8, temperature=TEMPERATURE)
    with pytest.raises(EngineError, match=reason):
        client.renew(spoil(learned(1)[1]), 3)
    after = client.act(**question(policy), count=8, temperature=TEMPERATURE)
    assert torch.equal(before[0], after[0])
    assert client.status().version is None


HEAD = "language_model.lm_head.weight"


def test_weights_that_change_on_the_way_are_refused(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = wire.checksum
    monkeypatch.setattr("vla_rl.serving.client.wire.checksum", lambda t: whole(t)[:-1] + "x")
    with pytest.raises(EngineError, match="checksum does not fit"):
        client.renew(learned(1)[1], 3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": lambda t: t[..., 1:]}, "images: expected"),
        ({"images": lambda t: t.float()}, "images: expected"),
        ({"ids": lambda t: t[:1]}, "ids: expected"),
        ({"ids": lambda t: t + 500}, "expected text ids below"),
        ({"ids": lambda t: -t}, "expected text ids below"),
        ({"lengths": lambda t: t + 1000}, "lengths: expected"),
        ({"lengths": lambda t: 0 * t}, "lengths: expected"),
        ({"seeds": lambda t: t - 1}, "seeds: expected none below 0"),
        ({"count": lambda n: 1000}, "the engine takes"),
        ({"count": lambda n: 0}, "count: expected"),
        ({"temperature": lambda n: 0.001}, "temperature: expected"),
        ({"temperature": lambda n: -1.0}, "temperature: expected"),
        ({"temperature": lambda n: 1e9}, "temperature: expected"),
    ],
)
def test_questions_that_make_no_sense_are_refused_and_the_next_one_is_answered(
    changes: dict[str, Callable[[Any], Any]],
    reason: str,
    client: EngineClient,
    policy: OpenVLAPolicy,
) -> None:
    asked: dict[str, Any] = {**question(policy), "count": 8, "temperature": 1.0}
    spoilt = asked | {name: change(asked[name]) for name, change in changes.items()}
    with pytest.raises(UserError, match=reason):
        client.act(**spoilt)
    client.act(**asked)


def test_no_rows_are_refused(client: EngineClient, policy: OpenVLAPolicy) -> None:
    asked = {name: tensor[:0] for name, tensor in question(policy).items()}
    with pytest.raises(EngineError, match=r"expected 1 to \d+"):
        client.act(**asked, count=8, temperature=1.0)


# --- who may speak, and how


def raw(server: EngineServer, data: bytes) -> Message:
    """What the server says to these bytes."""
    with server.address.connect(60.0) as connection:
        connection.sendall(data)
        return wire.receive(connection, "the server", lambda _: 0)


def frame(header: bytes, arrays: int = 0, protocol: int = wire.PROTOCOL) -> bytes:
    return struct.pack(">4sHHIQ", b"VLAE", protocol, 0, len(header), arrays) + header


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", "does not speak as an engine"),
        (frame(b"{}", protocol=2), "speaks protocol 2, this program 1"),
        (frame(b"no json"), "valid JSON"),
        (frame(b"{}"), "kind"),
        (frame(b"[" * 100_000), "nesting"),
        (frame(b'{"kind": "status"}'), "expected a hello first"),
        (frame(b'{"kind": "hello", "token": 5}'), "token: expected a text"),
        (frame(b'{"kind": "hello"}', arrays=2**40), "announced"),
        (
            frame(
                b'{"kind": "hello", "arrays": [{"name": "a", "dtype": "uint8", "shape": [9]}]}', 9
            ),
            "allowed 0",
        ),
        (
            frame(b'{"kind": "hello", "arrays": [{"name": "a", "dtype": "object", "shape": [9]}]}'),
            "dtype",
        ),
        (struct.pack(">4sHHIQ", b"VLAE", wire.PROTOCOL, 0, 2**31, 0), "a header of"),
    ],
)
def test_what_is_no_hello_is_sent_away(server: EngineServer, data: bytes, reason: str) -> None:
    answer = raw(server, data)
    assert answer.kind == "refused"
    assert reason in answer.fields["reason"]
    EngineClient(server.address, 60.0).close()  # others are served


def test_a_question_of_an_unknown_kind_is_refused(client: EngineClient) -> None:
    with pytest.raises(EngineError, match="no question of kind 'shutdown'"):
        client._ask(Message("shutdown"), "done")


def test_a_server_of_another_version_is_named(tmp_path: Path) -> None:
    address = Address.of_path(tmp_path / "socket")
    with address.listen() as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(frame(json.dumps({"kind": "facts"}).encode(), protocol=9))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ProtocolError, match="speaks protocol 9, this program 1"):
            EngineClient(address, 60.0)
        thread.join()


def test_a_port_needs_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = Address.parse(f"127.0.0.1:{port}")
    backend = OwnBackend(make_policy())
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=TOKEN_VARIABLE):
        EngineServer(backend, address)
    monkeypatch.setenv(TOKEN_VARIABLE, "correct horse battery staple")
    with serving(backend, address):
        EngineClient(address, 60.0).close()
        with pytest.raises(EngineError, match="password"):
            EngineClient(address, 60.0, token="correct horse battery stable")
        with pytest.raises(UserError, match="in use"):
            address.listen()


def test_a_socket_is_its_users_alone_and_not_taken_twice(
    server: EngineServer, tmp_path: Path
) -> None:
    path = server.address.path
    assert path is not None
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(UserError, match="in use"):
        server.address.listen()
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="is no socket"):
        Address.of_path(tmp_path / "notes").listen()
    assert (tmp_path / "notes").read_text() == "mine"


def test_the_socket_of_an_engine_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    address = Address.of_path(tmp_path / "socket")
    address.listen().close()
    address.listen().close()
    with pytest.raises(ConnectionLostError, match="nobody answers"):
        EngineClient(address, 60.0)


@pytest.mark.parametrize("text", ["", "engine", "example.org:80", "127.0.0.1:0", "127.0.0.1:x"])
def test_an_address_is_of_this_machine(text: str) -> None:
    with pytest.raises(ConfigError, match="unix:PATH or"):
        Address.parse(text)


def test_an_engine_that_fails_amid_new_weights_ends(
    policy: OpenVLAPolicy, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OwnBackend(make_policy())

    def load(_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(backend, "load", load)
    with serving(backend, address), EngineClient(address, 60.0) as client:
        with pytest.raises(EngineError, match="out of memory"):
            client.renew(learned(1)[1], 1)
        assert address.path is not None
        while address.path.exists():  # until the server has left
            time.sleep(0.01)
        with pytest.raises(ConnectionLostError):
            client.status()


def test_a_failed_question_is_answered_and_the_engine_goes_on(
    policy: OpenVLAPolicy, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OwnBackend(sharpen(make_policy()))
    act = backend.act

    def broken(asked: Question) -> Any:
        if asked.count == 3:
            raise RuntimeError("a kernel is missing")
        return act(asked)

    monkeypatch.setattr(backend, "act", broken)
    with serving(backend, address), EngineClient(address, 60.0) as client:
        with pytest.raises(EngineError, match="a kernel is missing"):
            client.act(**question(policy), count=3, temperature=1.0)
        client.act(**question(policy), count=8, temperature=1.0)
