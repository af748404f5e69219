"""Serve any policy as openpi's servers do: msgpack over WebSocket.

    from vla_rl.serving.openpi import serve_policy

    def act(observation):                       # {"observation/image": uint8 (H, W, 3), ..., "prompt": "pick up ..."}
        return my_policy(observation)           # actions, float32 (horizon, A)

    serve_policy(act, port=8000)                # until Ctrl-C

Needs numpy, msgpack and websockets alone: it can be used where the rest of this package is not installed.
Source: openpi-client 0.1.2, and openpi's websocket_policy_server.py, whose clients this answers.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.server import ServerConnection

from vla_rl.serving.packing import WireError, in_words, pack, unpack
from vla_rl.serving.websocket import HERE, PORT, PolicyServer, read_key

LOG = logging.getLogger(__name__)

IMAGE, WRIST, STATE, PROMPT = (
    "observation/image",
    "observation/wrist_image",
    "observation/state",
    "prompt",
)
CONTROL, ACKNOWLEDGED = "__ctrl__", "__ack__"
EPISODE_START, EPISODE_END = "episode_start", "episode_end"

MOST_AT_ONCE = "clients"
"""Name in the metadata of how many clients a policy that remembers can have."""

Act = Callable[[dict[str, Any]], Any]
"""What a client sees -> its actions, (horizon, A), or a dictionary with them under "actions"."""


def serve_policy(
    policy: Any,
    host: str = HERE,
    port: int = PORT,
    *,
    key: str = "",
    key_file: Path | str | None = None,
    metadata: Mapping[str, Any] | None = None,
    per_client: bool = False,
) -> None:
    """Serve until Ctrl-C.

    policy: a function from observation to actions, or an object with such a method `infer`. It is called for one client
    at a time. Actions are in the units of the client's simulator, the first to be played first. If it has a method
    `reset` it remembers the episode: `reset()` is called before each, and it has one client at most, unless `policy` is
    a function that makes another one for each client (per_client). metadata: sent to each client as it connects.
    key, key_file: what clients must have, needed on every address that other machines can reach.

    ValueError where it cannot listen there, or must not.
    """
    server = policy_server(policy, host, port, key, key_file, metadata, per_client)
    print(f"serving on {server.url} (openpi's protocol); Ctrl-C ends it", flush=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        print("ended", flush=True)


def policy_server(
    policy: Any,
    host: str = HERE,
    port: int = PORT,
    key: str = "",
    key_file: Path | str | None = None,
    metadata: Mapping[str, Any] | None = None,
    per_client: bool = False,
) -> PolicyServer:
    """What `serve_policy` runs; it listens already."""
    if not callable(policy if per_client else _act_of(policy)):
        raise ValueError(f"a policy is a function or has a method infer, got {in_words(policy)}")
    remembers = per_client or hasattr(policy, "reset")
    told = {**(metadata or {}), **({CONTROL: True} if remembers else {})}
    alone = remembers and not per_client
    if alone:
        told[MOST_AT_ONCE] = 1
    pack(told)  # what cannot be sent is said now
    key = key or read_key(Path(key_file) if key_file is not None else None)
    talk = Conversations(policy if per_client else lambda: policy, told)
    server = PolicyServer(talk, host, port, key, **({"most_clients": 1} if alone else {}))
    server.listen()
    return server


def _act_of(policy: Any) -> Act:
    return policy.infer if hasattr(policy, "infer") else policy


class Conversations:
    """Answers clients, each in its thread; policies are asked one at a time."""

    def __init__(self, policy_for_client: Callable[[], Any], metadata: Mapping[str, Any]) -> None:
        self._policy_for_client, self._metadata = policy_for_client, metadata
        self._one_at_a_time = threading.Lock()

    def __call__(self, client: ServerConnection) -> None:
        """Metadata first, then an answer to each request. A fault of the client's is said, and it may go on."""
        with self._one_at_a_time:
            policy = self._policy_for_client()
        client.send(pack(dict(self._metadata)))
        while True:
            frame = client.recv()
            try:
                answer = self._answer(policy, frame)
            except WireError as error:
                client.send(f"the request cannot be used: {error}")
            except Exception:
                LOG.exception("the policy has failed")
                client.send(traceback.format_exc())
                client.close(1011, "the policy has failed, see the frame before")
                return
            else:
                client.send(answer)

    def _answer(self, policy: Any, frame: str | bytes) -> bytes:
        if isinstance(frame, str):
            raise WireError("expected a binary frame of msgpack, got one of text")
        request = unpack(frame)
        if not isinstance(request, dict) or not all(isinstance(key, str) for key in request):
            raise WireError(f"expected a map with keys of text, got {in_words(request)}")
        if CONTROL in request:
            return self._control(policy, request[CONTROL])
        with self._one_at_a_time:
            started = time.monotonic()
            reply = _act_of(policy)(request)
            timing = {"infer_ms": 1000 * (time.monotonic() - started)}
        reply = dict(reply) if isinstance(reply, Mapping) else {"actions": reply}
        actions = np.asarray(reply.get("actions"))
        good = actions.ndim == 2 and len(actions) > 0 and actions.dtype.kind == "f"
        if not good or not np.isfinite(actions).all():
            raise RuntimeError(
                f"the policy gave {in_words(actions)}: expected finite actions, floats of shape (horizon, A)"
            )
        return pack({**reply, "actions": actions, "server_timing": timing})

    def _control(self, policy: Any, word: Any) -> bytes:
        if word not in (EPISODE_START, EPISODE_END):
            raise WireError(
                f"{CONTROL} is {in_words(word)}: expected {EPISODE_START} or {EPISODE_END}"
            )
        if word == EPISODE_START and hasattr(policy, "reset"):
            with self._one_at_a_time:
                policy.reset()
        return pack({ACKNOWLEDGED: word})
