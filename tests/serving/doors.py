"""Servers and policies that tests of the doors share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from builders.policies import sharpen, tiny_policy
from vla_rl.config import EnvConfig, tiny_model
from vla_rl.envs.defaults import laptop_env
from vla_rl.envs.registry import benchmark
from vla_rl.policies import OpenVLAPolicy

SUITE = "toy:reach-red,grasp-block"
PICTURE = np.full((32, 32, 3), 90, np.uint8)


def toy_env(**changes: Any) -> EnvConfig:
    small: dict[str, Any] = {
        "image_size": 32,
        "horizon": 4,
        "num_envs": 3,
        "action_chunk": 2,
        "action_repeat": 3,
    }
    return replace(laptop_env(SUITE), **(small | changes))


def toy_policy() -> OpenVLAPolicy:
    """Random weights, but far from indifferent: each picture has an action of its own."""
    policy = tiny_policy(benchmark(SUITE).instructions(SUITE), tiny_model(32), dataset="toy")
    return sharpen(policy, 30.0)


def request(**changes: Any) -> dict[str, Any]:
    whole = {
        "observation/image": PICTURE,
        "observation/state": np.zeros(4, np.float32),
        "prompt": "go to the red disc",
    }
    return {name: value for name, value in (whole | changes).items() if value is not None}


@contextmanager
def raw_server(converse: Callable[[Any], object]) -> Iterator[str]:
    """A server that says whatever `converse` does to each client; gives its address."""
    from websockets.sync.server import serve

    with serve(converse, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()


class Faulty:
    """Answers as openpi's servers do, but for the `wrong`th question of all, which gets what `fault` gives."""

    def __init__(self, wrong: int, fault: Callable[[Any], object], again: bool = False) -> None:
        """again: from then on every time."""
        self.asked, self._wrong, self._fault, self._again = 0, wrong, fault, again
        self._lock = threading.Lock()

    def __call__(self, client: Any) -> None:
        from vla_rl.serving.packing import pack

        client.send(pack({}))
        while True:
            client.recv()
            with self._lock:
                self.asked += 1
                wrong = self.asked == self._wrong or (self._again and self.asked > self._wrong)
            if wrong:
                self._fault(client)
            else:
                client.send(pack({"actions": np.zeros((5, 4), np.float32)}))


def _send(value: Any, client: Any) -> None:
    from vla_rl.serving.packing import pack

    client.send(value if isinstance(value, (str, bytes)) else pack(value))


def _actions(value: Any) -> Callable[[Any], object]:
    return partial(_send, {"actions": value})


FAULTS: dict[str, tuple[Callable[[Any], object], str]] = {
    "dies": (lambda client: client.close_socket(), "has hung up"),
    "says why": (lambda client: client.close(1011, "out of memory"), "1011 out of memory"),
    "late": (lambda client: time.sleep(1.5), "was silent for 0.5 s"),
    "nan": (_actions(np.full((5, 4), np.nan, np.float32)), "not finite"),
    "huge numbers": (_actions(np.full((5, 4), 1e30)), "not finite numbers of at most"),
    "text": (
        partial(_send, "Traceback ...\nKeyError: 'observation/x'\n"),
        "error of its own: KeyError",
    ),
    "garbage": (partial(_send, b"\xc1\xc1\xc1"), "cannot be read"),
    "no actions": (partial(_send, {"action": 1}), "answered a map with the keys 'action'"),
    "a number": (partial(_send, 3), "answered int 3"),
    "one action": (_actions(np.zeros(4, np.float32)), "numbers of shape (horizon, 4)"),
    "words": (_actions(np.array([["up", "down", "left", "right"]])), "numbers of shape"),
    "huge frame": (partial(_send, bytes(65 * 2**20)), "a frame of more than"),
}
"""How a server can be at fault, and what is said of it."""


def connect(url: str, **headers: Any) -> Any:
    """A socket without anything on top."""
    from websockets.sync.client import connect as open_socket

    from vla_rl.serving.websocket import supported

    options = supported(open_socket, legacy=True, proxy=None)
    return open_socket(url, compression=None, max_size=None, **options, **headers)


def ask(connection: Any, **changes: Any) -> np.ndarray:
    """What a connection answers to `request`."""
    from vla_rl.serving.openpi_client import actions_of

    connection.send(request(**changes))
    return actions_of(connection.receive("actions"), connection.url, 4, 6)
