"""One process at a time in a run folder."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from pathlib import Path

from vla_rl.config.errors import UserError
from vla_rl.runtime.files import cannot_write

logger = logging.getLogger(__name__)


class FolderLock:
    """Holds `<folder>/.lock` until `release` or the end of the process, however it ends.

    The lock is the operating system's (flock): that of a killed process is gone with it, and the file
    that stays behind says only who held it last.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(cannot_write(self._path, error)) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder()
            os.close(self._descriptor)
            raise UserError(
                f"{folder} is in use by {holder}: wait for it, stop it, or choose another run name"
            ) from None
        except OSError as error:  # some network file systems
            logger.warning("%s cannot be locked (%s): do not train in it twice", folder, error)
        os.ftruncate(self._descriptor, 0)
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.pwrite(self._descriptor, text.encode(), 0)

    def moved_to(self, folder: Path) -> None:
        """The folder has been renamed; the lock stays held."""
        self._path = folder / ".lock"

    def release(self) -> None:
        """Let go. The file stays: deleting it could take it from under a newer holder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _holder(self) -> str:
        try:
            who = json.loads(self._path.read_text())
            return f"process {who['pid']} on {who['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def held_elsewhere(folder: Path) -> bool:
    """Whether another process of this machine says that it works in `folder`, and lives. Takes no lock itself."""
    try:
        who = json.loads((folder / ".lock").read_text())
        return (
            who["host"] == socket.gethostname()
            and who["pid"] != os.getpid()
            and Path("/proc", str(int(who["pid"]))).exists()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
