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

from vla_rl.serving.freshness import (
    LAST_ACTION,
    OBSERVED_AT,
    SEQUENCE,
    Freshness,
    last_action,
)
from vla_rl.serving.limits import ActionLimits, LimitKeeper, RefusedError, Rules
from vla_rl.serving.packing import WireError, in_words, pack, unpack
from vla_rl.serving.websocket import HERE, PORT, PolicyServer, bound_sending, read_key

LOG = logging.getLogger(__name__)

IMAGE, WRIST, STATE, PROMPT = (
    "observation/image",
    "observation/wrist_image",
    "observation/state",
    "prompt",
)
CONTROL, ACKNOWLEDGED = "__ctrl__", "__ack__"
EPISODE_START, EPISODE_END = "episode_start", "episode_end"

LIMITS = "vla_rl/limits"
"""Name in the metadata of what every action keeps that leaves."""
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
    limits: ActionLimits | None = None,
    rules: Rules | None = None,
) -> None:
    """Serve until Ctrl-C.

    policy: a function from observation to actions, or an object with such a method `infer`. It is called for one client
    at a time. Actions are in the units of the client's simulator, the first to be played first. If it has a method
    `reset` it remembers the episode: `reset()` is called before each, and it has one client at most, unless `policy` is
    a function that makes another one for each client (per_client). metadata: sent to each client as it connects.
    key, key_file: what clients must have, needed on every address that other machines can reach. limits: what every
    action keeps that leaves. rules: time-outs, and whether requests must be numbered.

    ValueError where it cannot listen there, or must not.
    """
    server = policy_server(policy, host, port, key, key_file, metadata, per_client, limits, rules)
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
    limits: ActionLimits | None = None,
    rules: Rules | None = None,
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
    talk = Conversations(policy if per_client else lambda: policy, told, limits, rules)
    server = PolicyServer(talk, host, port, key, **({"most_clients": 1} if alone else {}))
    server.listen()
    return server


def _act_of(policy: Any) -> Act:
    return policy.infer if hasattr(policy, "infer") else policy


class Conversations:
    """Answers clients, each in its thread; policies are asked one at a time."""

    def __init__(
        self,
        policy_for_client: Callable[[], Any],
        metadata: Mapping[str, Any],
        limits: ActionLimits | None = None,
        rules: Rules | None = None,
    ) -> None:
        """limits: what every action keeps that leaves. rules: time-outs, and what requests must say of themselves."""
        self._policy_for_client, self._limits = policy_for_client, limits
        self._metadata = {**metadata, **({} if limits is None else {LIMITS: described(limits)})}
        self._rules = rules or Rules()
        self._one_at_a_time, self._clients = threading.Lock(), 0
        self.totals = LimitKeeper(limits, "all clients")
        """What the limits did in the conversations that have ended."""

    def __call__(self, client: ServerConnection) -> None:
        """Metadata first, then an answer to each request. A fault of the client's is said, and it may go on."""
        with self._one_at_a_time:
            policy = self._policy_for_client()
            self._clients += 1
            keeper = LimitKeeper(self._limits, f"client {self._clients}")
        fresh = Freshness(self._rules.fresh)
        if self._rules.idle:
            bound_sending(client.socket, self._rules.idle)
        try:
            client.send(pack(dict(self._metadata)))
            while True:
                frame = client.recv(timeout=self._rules.idle or None)
                if not self._reply(client, policy, keeper, fresh, frame):
                    return
        except TimeoutError:
            LOG.warning("%s was silent for %g s: hung up", keeper.who, self._rules.idle)
            client.close(1001, f"nothing was asked for {self._rules.idle:g} s")
        finally:
            with self._one_at_a_time:
                self.totals.counts += keeper.counts
            if keeper.counts["actions"] != keeper.counts.total():
                LOG.warning("%s has gone: %s", keeper.who, keeper.report())

    def _reply(
        self,
        client: ServerConnection,
        policy: Any,
        keeper: LimitKeeper,
        fresh: Freshness,
        frame: str | bytes,
    ) -> bool:
        """Answer one frame; False where the policy has failed and the conversation is over."""
        try:
            answer = self._answer(policy, keeper, fresh, frame)
        except WireError as error:
            client.send(f"the request cannot be used: {error}")
        except RefusedError as error:
            client.send(f"the answer is refused: {error}")
        except Exception:
            LOG.exception("the policy has failed")
            client.send(traceback.format_exc())
            client.close(1011, "the policy has failed, see the frame before")
            return False
        else:
            client.send(answer)
        return True

    def _answer(
        self, policy: Any, keeper: LimitKeeper, fresh: Freshness, frame: str | bytes
    ) -> bytes:
        came = time.monotonic()
        if isinstance(frame, str):
            raise WireError("expected a binary frame of msgpack, got one of text")
        request = unpack(frame)
        if not isinstance(request, dict) or not all(isinstance(key, str) for key in request):
            raise WireError(f"expected a map with keys of text, got {in_words(request)}")
        if CONTROL in request:
            return self._control(policy, keeper, request[CONTROL])
        fresh.check(request)
        if self._limits is not None:
            said = last_action(request, self._limits.action_dim)
            keeper.last = keeper.last if said is None else said
        asked = {
            name: request[name]
            for name in request
            if name not in (LAST_ACTION, OBSERVED_AT, SEQUENCE)
        }
        with self._one_at_a_time:
            started = time.monotonic()
            reply = _act_of(policy)(asked)
            timing = {"infer_ms": 1000 * (time.monotonic() - started)}
        reply = dict(reply) if isinstance(reply, Mapping) else {"actions": reply}
        actions = np.asarray(reply.get("actions"))
        good = actions.ndim == 2 and len(actions) > 0 and actions.dtype.kind == "f"
        if not good or not np.isfinite(actions).all():
            raise RuntimeError(
                f"the policy gave {in_words(actions)}: expected finite actions, floats of shape (horizon, A)"
            )
        self._require_in_time(time.monotonic() - came, keeper)
        kept = {**reply, "actions": keeper(actions), "server_timing": timing}
        if SEQUENCE in request:
            kept[SEQUENCE] = request[SEQUENCE]
        return pack(kept)

    def _require_in_time(self, seconds: float, keeper: LimitKeeper) -> None:
        """RefusedError where an answer comes too late to be of use."""
        if 0 < self._rules.answer < seconds:
            keeper.refuse(
                f"it took {seconds:.3g} s, and {self._rules.answer:g} s are allowed: the observation is old"
            )

    def _control(self, policy: Any, keeper: LimitKeeper, word: Any) -> bytes:
        if word not in (EPISODE_START, EPISODE_END):
            raise WireError(
                f"{CONTROL} is {in_words(word)}: expected {EPISODE_START} or {EPISODE_END}"
            )
        if word == EPISODE_START:
            keeper.forget()
            if hasattr(policy, "reset"):
                with self._one_at_a_time:
                    policy.reset()
        return pack({ACKNOWLEDGED: word})


def described(limits: ActionLimits) -> dict[str, Any]:
    """Limits as clients are told them; None where a number is not limited."""
    ends = {"low": limits.least, "high": limits.most, "change": limits.change}
    told = {name: [float(x) if np.isfinite(x) else None for x in end] for name, end in ends.items()}
    return {**told, "beyond": limits.beyond}
