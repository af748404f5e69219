"""Where an engine listens: a file that its user alone can open, or a port of this machine with a password.

unix:runs/engine.socket      or simply the path
127.0.0.1:5005               and VLA_RL_ENGINE_TOKEN in the environment of both sides
"""

from __future__ import annotations

import errno
import hmac
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vla_rl.config.errors import ConfigError, UserError

TOKEN_VARIABLE = "VLA_RL_ENGINE_TOKEN"
HERE = "127.0.0.1"
SHORTEST_TOKEN = 16
LONGEST_PATH = 100
"""Bytes of a socket's path; the kernel takes 107."""
_WAITING = 64


@dataclass(frozen=True)
class Address:
    """A path, or a port of this machine."""

    path: Path | None = None
    port: int = 0

    @staticmethod
    def parse(text: str) -> Address:
        """`unix:PATH`, a path with a slash, or `127.0.0.1:PORT`. ConfigError for anything else."""
        path = text.removeprefix("unix:")
        if path != text or "/" in text:
            return Address.of_path(Path(path))
        host, colon, port = text.rpartition(":")
        if not (
            colon and host in (HERE, "localhost") and port.isdecimal() and 0 < int(port) < 65536
        ):
            raise ConfigError(
                f"an engine's address is unix:PATH or {HERE}:PORT, a socket of this machine; got {text!r}"
            )
        return Address(port=int(port))

    @staticmethod
    def of_path(path: Path) -> Address:
        """ConfigError if the path is too long for a socket."""
        path = path.absolute()
        if len(os.fsencode(path)) > LONGEST_PATH:
            raise ConfigError(
                f"{path} is too long for a socket ({LONGEST_PATH} bytes at most): take a shorter path, or set TMPDIR"
            )
        return Address(path)

    def __str__(self) -> str:
        return f"{HERE}:{self.port}" if self.path is None else f"unix:{self.path}"

    @property
    def token(self) -> str:
        """The password, of a port alone. ConfigError where there is none or a short one."""
        if self.path is not None:
            return ""
        token = os.environ.get(TOKEN_VARIABLE, "")
        if len(token) < SHORTEST_TOKEN:
            raise ConfigError(
                f"a port is open to everybody on this machine: set {TOKEN_VARIABLE} to a password of at least "
                f"{SHORTEST_TOKEN} characters, the same for engine and run, or use a socket (--socket PATH)"
            )
        return token

    def connect(self, timeout: float) -> socket.socket:
        """A connection to who listens there. OSError where nobody does."""
        connection = self._new()
        connection.settimeout(timeout)
        try:
            connection.connect(self._name)
        except BaseException:
            connection.close()
            raise
        return connection

    def listen(self) -> socket.socket:
        """Listen there. UserError where somebody else does, or it cannot be done."""
        listener = self._new()
        try:
            if self.path is None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(self._name)
            else:
                self._remove_dead(self.path)
                before = os.umask(0o177)  # there is no moment at which others could open it
                try:
                    listener.bind(self._name)
                finally:
                    os.umask(before)
            listener.listen(_WAITING)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"{self} is in use: choose another one, or end who listens there"
                ) from error
            raise UserError(f"cannot listen on {self}: {error.strerror or error}") from error
        except BaseException:
            listener.close()
            raise
        return listener

    def remove(self) -> None:
        """Remove the socket's file."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()

    def _new(self) -> socket.socket:
        return socket.socket(socket.AF_INET if self.path is None else socket.AF_UNIX)

    @property
    def _name(self) -> tuple[str, int] | str:
        return (HERE, self.port) if self.path is None else str(self.path)

    def _remove_dead(self, path: Path) -> None:
        """Remove the socket that an engine has left that was killed. UserError for any other file."""
        try:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise UserError(f"{path} is there already and is no socket: choose another path")
        except FileNotFoundError:
            return
        try:
            self.connect(1.0).close()
        except ConnectionRefusedError:
            path.unlink()


def same(one: str, other: str) -> bool:
    """Whether two passwords are the same, in a time that tells nothing of them."""
    return hmac.compare_digest(one.encode(), other.encode())
