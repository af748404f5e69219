"""A WebSocket that serves a policy: who may connect, how large a frame may be, how it ends.

What is said on it is the business of `openpi` and `vla_eval`. This module needs the package `websockets` alone, so that
programs of other environments can use it too.
"""

from __future__ import annotations

import hmac
import inspect
import ipaddress
import logging
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from vla_rl.serving.packing import MOST_BYTES

LOG = logging.getLogger(__name__)

HERE = "127.0.0.1"
PORT = 8000
KEY_VARIABLE = "VLA_RL_POLICY_KEY"
SHORTEST_KEY = 16
LONGEST_KEY = 512
MOST_CLIENTS = 64
HEALTH = ("/healthz", "/health")
"""openpi asks for the first, vla-eval for the second."""
_SCHEME = "Api-Key "
_WAITING = 64
_CLOSING = 2.0  # seconds in which a client must say farewell


class AddressError(ValueError):
    """Nobody can listen there, or nobody may."""


class PolicyServer:
    """Lets clients in one after another, each in a thread of its own, and `converse`s with them."""

    def __init__(
        self,
        converse: Callable[[ServerConnection], None],
        host: str = HERE,
        port: int = PORT,
        key: str = "",
        most_bytes: int = MOST_BYTES,
        most_clients: int = MOST_CLIENTS,
    ) -> None:
        """Take the address; whoever comes before `listen` is told that nobody is there, and comes again.

        converse: talks to one client until it has gone. port: 0 takes a free one. key: what clients must have; may be
        empty on an address that this machine alone can reach. AddressError where it cannot be listened, or must not
        without a key.
        """
        if not is_loopback(host) and not key:
            raise AddressError(
                f"{host} can be reached from other machines: that needs a key (--key-file FILE, or {KEY_VARIABLE}), "
                f"which clients send. Without one only {HERE} is served"
            )
        self._converse, self._key = converse, key.encode()
        self._most_clients, self._clients = most_clients, set[ServerConnection]()
        self._most_bytes = most_bytes
        self._server: Server | None = None
        self._lock, self._ended = threading.Lock(), False
        self._listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.host = host
        self._at(port, lambda: self._listener.bind((host, port)))
        self.port = int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ws://{host}:{self.port}"

    def listen(self) -> None:
        """From now on clients wait until they are let in. AddressError where somebody else listens there."""
        self._at(self.port, lambda: self._listener.listen(_WAITING))

    def _at(self, port: int, do: Callable[[], object]) -> None:
        try:
            do()
        except (OSError, OverflowError) as error:
            self._listener.close()
            reason = getattr(error, "strerror", None) or error
            raise AddressError(
                f"cannot listen on {self.host}:{port} ({reason}): choose another --port, or end who listens there"
            ) from error

    def serve(self) -> None:
        """Serve until `stop` is called, or an exception comes (as from Ctrl-C); ends all conversations."""
        with self._lock:
            if self._ended:
                return
            self.listen()
            self._server = server = serve(
                self._handle, sock=self._listener,
                process_request=self._admit, max_size=self._most_bytes, compression=None,
                # no keepalive: a simulator that compiles is silent for long
                origins=[None],  # a page in a browser says where it is from, and has no business here
                close_timeout=_CLOSING, logger=_quiet(), **supported(serve, ping_interval=None),
            )  # fmt: skip
        try:
            server.serve_forever()
        finally:
            self.stop()

    def stop(self) -> None:
        """Listen no longer and hang up, from any thread."""
        with self._lock:
            first, self._ended, clients = not self._ended, True, list(self._clients)
        if not first:
            return
        for client in clients:
            threading.Thread(target=client.close, args=(1001,), daemon=True).start()
        with suppress(OSError):
            self._listener.close() if self._server is None else self._server.shutdown()

    def __enter__(self) -> PolicyServer:
        """Serve in a thread, for tests and notebooks."""
        self.listen()
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _admit(self, connection: ServerConnection, request: Any) -> Any:
        """None lets the client in; else what it is answered."""
        if request.path in HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        if not self._key:
            return None
        given = request.headers.get_all("Authorization")
        if len(given) == 1 and given[0].startswith(_SCHEME):
            offered = given[0][len(_SCHEME) :].strip().encode(errors="replace")
            if hmac.compare_digest(offered, self._key):
                return None
        LOG.warning("a client without the right key was sent away")
        return connection.respond(
            HTTPStatus.UNAUTHORIZED,
            "the key is missing or another one: send Authorization: Api-Key KEY\n",
        )

    def _handle(self, connection: ServerConnection) -> None:
        with self._lock:
            full = self._ended or len(self._clients) >= self._most_clients
            if not full:
                self._clients.add(connection)
        if full:
            connection.close(1013, "too many clients")
            return
        try:
            self._converse(connection)
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == 1009:
                LOG.warning("a client was sent away: it sent too large a frame")
        except Exception:
            if not self._ended:
                LOG.exception("a conversation has failed")
        finally:
            with self._lock:
                self._clients.discard(connection)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_key(file: Path | None) -> str:
    """The key in `file`, without one that in the environment variable VLA_RL_POLICY_KEY; empty where there is none.

    AddressError for a file that cannot be read, and for a key that is short or not of printable ASCII.
    """
    source = f"the key in {KEY_VARIABLE}" if file is None else f"the key in {file}"
    if file is None:
        key = os.environ.get(KEY_VARIABLE, "")
        if not key:
            return ""
    else:
        try:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > 4096:
                raise AddressError(f"{file} is no key file: expected a small file with one line")
            key = file.read_text("ascii", errors="replace")
        except OSError as error:
            raise AddressError(f"cannot read the key file {file}: {error.strerror}") from error
        if status.st_mode & 0o077 and status.st_uid == os.getuid():
            LOG.warning("%s can be read by others on this machine: chmod 600 %s", file, file)
    key = key.strip()
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY or not all(
        "!" <= letter <= "~" for letter in key
    ):
        raise AddressError(
            f"{source} does not do: expected {SHORTEST_KEY} to {LONGEST_KEY} printable ASCII characters without "
            "blanks in one line, as `openssl rand -hex 32` makes them"
        )
    return key


def key_header(key: str) -> dict[str, str]:
    """What a client with this key sends."""
    return {"Authorization": _SCHEME + key} if key else {}


def supported(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those of `options` that the installed version of the library has."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def bound_sending(connection: socket.socket, seconds: float) -> None:
    """Whoever does not read keeps nobody for longer. The library waits for ever; the kernel need not."""
    whole = int(seconds)
    with suppress(OSError, OverflowError, struct.error):
        limit = struct.pack("@ll", whole, int((seconds - whole) * 1e6) or (1 if not whole else 0))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _quiet() -> logging.Logger:
    """The library's own log, which shows a traceback for every port scan; our own words are said above."""
    logger = logging.getLogger("vla_rl.serving.websocket.library")
    logger.setLevel(logging.CRITICAL)
    return logger
