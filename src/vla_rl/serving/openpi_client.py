"""Asks a policy that is served with openpi's protocol, and checks what it answers before anything moves by it.

Source: openpi-client 0.1.2, websocket_client_policy.py.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Float32
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    WebSocketException,
)
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from vla_rl.config.errors import ConfigError, UserError, printable
from vla_rl.serving.openpi import ACKNOWLEDGED, CONTROL, EPISODE_END, EPISODE_START
from vla_rl.serving.packing import MOST_BYTES, WireError, in_words, pack, unpack
from vla_rl.serving.websocket import (
    KEY_VARIABLE,
    bound_sending,
    is_loopback,
    key_header,
    supported,
)

LOG = logging.getLogger(__name__)

CONNECT_TIMEOUT = 20.0
"""Seconds for the way to a server; it may take longer to answer."""
LARGEST_ACTION = 1e6
_SHOWN = 600  # letters of a server's own error
_CLOSING = 1.0


class PolicyServerError(UserError):
    """The server is at fault, or the way to it: asking again may help."""


class WrongPolicyError(UserError):
    """The server works, but not for what is asked: asking again does not help."""


def require_url(url: str) -> None:
    """ConfigError unless `url` is ws://HOST:PORT or wss://HOST:PORT."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
        good = (
            good
            and not parts.username
            and not parts.query
            and not parts.fragment
            and url.isprintable()
        )
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"the address of a policy is ws://HOST:PORT or wss://HOST:PORT, as ws://127.0.0.1:8000; got {url!r}"
        )


class PolicyConnection:
    """One conversation with a server. Each method raises PolicyServerError where the server is at fault."""

    def __init__(self, url: str, key: str = "", timeout: float = 120.0) -> None:
        """Connect and hear what the server says of itself. timeout: seconds for an answer.

        WrongPolicyError where the server refuses the key.
        """
        require_url(url)
        self.url, self._timeout = url, timeout
        self._in_episode = False
        _warn_of_open_key(url, key)
        self._connection = self._connect(key)
        bound_sending(self._connection.socket, timeout)
        try:
            told = self.receive("its metadata")
            if not isinstance(told, dict) or not all(isinstance(name, str) for name in told):
                raise PolicyServerError(
                    f"{url} said {in_words(told)} first: expected a map of metadata, as openpi's servers send"
                )
        except BaseException:
            self.close()
            raise
        self.metadata: dict[str, Any] = told

    @property
    def knows_episodes(self) -> bool:
        """Whether the server wants to be told where episodes begin."""
        return self.metadata.get(CONTROL) is True

    @property
    def is_open(self) -> bool:
        """Whether the server has not hung up, as far as this machine has heard."""
        return self._connection.protocol.state is State.OPEN

    def begin_episode(self) -> None:
        """Tell it that an episode begins, and before that, where there was one, that it has ended."""
        if self._in_episode:
            self.control(EPISODE_END)
        self.control(EPISODE_START)
        self._in_episode = True

    def control(self, word: str) -> None:
        """Tell it that an episode begins or ends."""
        self.send({CONTROL: word})
        answer = self.receive("an acknowledgement")
        if not isinstance(answer, dict) or answer.get(ACKNOWLEDGED) != word:
            raise PolicyServerError(
                f"{self.url} answered {in_words(answer)} where {ACKNOWLEDGED} was expected"
            )

    def send(self, request: Mapping[str, Any]) -> None:
        try:
            self._connection.send(pack(dict(request)))
        except ConnectionClosed as closed:
            raise self._closed(closed) from closed
        except BlockingIOError as error:
            raise PolicyServerError(
                f"{self.url} has not read what it was sent for {self._timeout:g} s"
            ) from error
        except OSError as error:
            raise PolicyServerError(f"the way to {self.url} is lost ({error})") from error

    def receive(self, what: str) -> Any:
        """The next frame, unpacked."""
        try:
            frame = self._connection.recv(timeout=self._timeout)
        except TimeoutError as error:
            raise PolicyServerError(
                f"{self.url} was silent for {self._timeout:g} s when {what} was expected; a slow policy needs a "
                "longer --timeout"
            ) from error
        except ConnectionClosed as closed:
            raise self._closed(closed) from closed
        except (OSError, WebSocketException) as error:
            raise PolicyServerError(f"the way to {self.url} is lost ({error})") from error
        if isinstance(frame, str):
            raise PolicyServerError(f"{self.url} reports an error of its own: {_last_words(frame)}")
        try:
            return unpack(frame)
        except WireError as error:
            raise PolicyServerError(f"{self.url} sent what cannot be read: {error}") from error

    def close(self) -> None:
        with suppress(Exception):
            self._connection.close()

    def _connect(self, key: str) -> ClientConnection:
        url = self.url
        # no keepalive: a policy that compiles is silent for long
        options: dict[str, Any] = {"ping_interval": None, "legacy": True}
        if is_loopback(urlsplit(url).hostname or ""):
            options["proxy"] = None
        try:
            return connect(
                url, compression=None, max_size=MOST_BYTES, additional_headers=key_header(key),
                open_timeout=min(CONNECT_TIMEOUT, self._timeout), close_timeout=_CLOSING,
                **supported(connect, **options),
            )  # fmt: skip
        except InvalidStatus as refused:
            status = refused.response.status_code
            if status in (401, 403):
                raise WrongPolicyError(
                    f"{url} wants another key ({status}): give it with --key-file FILE, or in {KEY_VARIABLE}"
                ) from refused
            raise PolicyServerError(f"{url} refuses to talk (HTTP status {status})") from refused
        except TimeoutError as error:
            raise PolicyServerError(f"{url} does not answer") from error
        except OSError as error:
            raise PolicyServerError(
                f"nobody answers at {url} ({error.strerror or error}): start the server, or mend the address"
            ) from error
        except (InvalidHandshake, WebSocketException, EOFError, ValueError) as error:
            raise PolicyServerError(f"{url} does not speak WebSocket: {error}") from error

    def _closed(self, closed: ConnectionClosed) -> PolicyServerError:
        if closed.sent is not None and closed.sent.code == 1009:
            return PolicyServerError(f"{self.url} sent a frame of more than {MOST_BYTES} bytes")
        said = closed.rcvd
        why = f" ({said.code} {printable(said.reason[:200])})".replace(" )", ")") if said else ""
        return PolicyServerError(f"{self.url} has hung up{why}")


def actions_of(
    reply: Any, url: str, action_dim: int, replan: int
) -> Float32[np.ndarray, "replan A"]:
    """The first `replan` actions of a reply.

    PolicyServerError for what no policy answers, WrongPolicyError for actions of another size or too few of them.
    """
    actions = reply.get("actions") if isinstance(reply, dict) else None
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind not in "fiu":
        found = in_words(reply if actions is None else actions)
        raise PolicyServerError(
            f'{url} answered {found}: expected "actions", numbers of shape (horizon, {action_dim})'
        )
    rows, size = actions.shape
    if not rows:
        raise PolicyServerError(f"{url} answered no action at all: expected {replan} or more")
    if size != action_dim:
        raise WrongPolicyError(
            f"{url} answers with {size} numbers an action, this suite is played with {action_dim}: serve a policy for "
            "this robot, or choose another --suite"
        )
    if rows < replan:
        raise WrongPolicyError(
            f"{url} answers with {rows} actions, and --replan {replan} asks for more: take --replan {rows}"
        )
    played = actions[:replan]
    if not np.isfinite(played).all() or np.abs(played.astype(np.float64)).max() > LARGEST_ACTION:
        raise PolicyServerError(
            f"{url} answers with actions that are not finite numbers of at most {LARGEST_ACTION:g}"
        )
    return played.astype(np.float32)


def _last_words(text: str) -> str:
    """The end of a traceback says what it was."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return printable(lines[-1][:_SHOWN]) if lines else "an empty text"


def _warn_of_open_key(url: str, key: str) -> None:
    parts = urlsplit(url)
    if not key or parts.scheme == "wss" or is_loopback(parts.hostname or ""):
        return
    with suppress(ValueError):
        if ipaddress.ip_address(parts.hostname or "").is_private:
            return
    LOG.warning("the key goes to %s unencrypted: take wss://, or a tunnel (ssh -L)", url)
