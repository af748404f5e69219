"""Ray in words of ours: that it is not there, that somebody has died, that somebody is silent."""

from __future__ import annotations

import importlib
import traceback
from typing import Any

from vla_rl.config.errors import UserError

_LAST_LINES = 12
_OF_MEMORY = ("running low on memory", "memory usage threshold", "OutOfMemoryError")
"""What Ray says of a process that it has ended itself; of any other it says that memory may have been the reason."""


class PeerLostError(Exception):
    """A process of another pool has died, or its machine has. The text says how."""


class PeerSilentError(Exception):
    """A process of another pool has not answered in time."""


class PeerFailedError(Exception):
    """A process of another pool raised what is nobody's mistake but a program's. The text has its traceback."""


def require_ray() -> Any:
    """The module `ray`. UserError where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            "parallel.arrangement pools needs Ray, which is not installed: pip install 'vla-rl[ray]'. Without it, "
            "parallel.ranks uses several processes of this machine"
        ) from error


def answer_of(reference: Any, timeout: float, who: str) -> Any:
    """What a call to another process has returned.

    reference: what `.remote()` gave, or a list of such. timeout: seconds. who: whom an error names.

    Raises UserError where the other side did, PeerLostError, PeerSilentError or PeerFailedError.
    """
    ray = require_ray()
    errors = ray.exceptions
    try:
        return ray.get(reference, timeout=timeout)
    except errors.GetTimeoutError as error:
        raise PeerSilentError(f"{who} has not answered for {timeout:g} seconds") from error
    except errors.OutOfMemoryError as error:
        raise out_of_memory(who, str(error)) from error
    except errors.RayTaskError as error:
        raise _meant(error, who) from error
    except errors.RayError as error:  # an actor, a worker, a node or an object that is gone
        text = str(error)
        if any(words in text for words in _OF_MEMORY):
            raise out_of_memory(who, text) from error
        raise PeerLostError(f"{who} has died: {_first_lines(text)}") from error


def out_of_memory(who: str, text: str) -> UserError:
    """The error for a process that was ended because its machine had no memory left."""
    return UserError(
        f"{who} was ended because its machine ran out of memory. Take fewer processes a machine (parallel.hosts, "
        f"parallel.actors), fewer env.num_envs, or machines with more memory. Ray says: {_first_lines(text)}"
    )


def _meant(error: Any, who: str) -> Exception:
    cause = error.cause
    if isinstance(cause, UserError):
        return UserError(f"{who}: {cause}")
    if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
        return out_of_memory(who, str(cause))
    if isinstance(cause, ImportError) and "vla_rl" in str(cause):
        return UserError(
            f"{who}: {cause}. Every machine of the cluster needs the same vla-rl; install it there, or start Ray there "
            "from the environment in which it is installed"
        )
    lines = "".join(traceback.format_exception_only(cause)) if cause is not None else ""
    return PeerFailedError(f"{who}: {lines}{_last_lines(str(error))}")


def _first_lines(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " ".join(lines[:3])[:500]


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_LAST_LINES:])
