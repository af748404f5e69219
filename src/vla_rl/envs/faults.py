"""What an environment of somebody else raises, told as what it is: the error, and where in which file."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vla_rl.config.errors import UserError

_FRAMES = 3
"""The last so many places of a traceback are shown."""
_OURS = str(Path(__file__).resolve().parents[1]) + os.sep
_LIBRARY = f"{os.sep}site-packages{os.sep}gymnasium{os.sep}"


@contextmanager
def told(name: str, doing: str) -> Iterator[None]:
    """Turn an exception of the environment `name` into a UserError; `doing` says in which of its methods."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise fault(name, doing, error) from error


def fault(name: str, doing: str, error: BaseException) -> UserError:
    """The error of an environment that fails: what it raised, and the last lines of its traceback."""
    lines = "".join(f"\n  {place}" for place in places(error))
    return UserError(
        f"{name} raised {type(error).__name__} in {doing}: {error}{lines}\n"
        "This is an error of that simulator: mend it there"
    )


def places(error: BaseException) -> list[str]:
    """The last lines of the traceback that are not ours or Gymnasium's, `file:line in function: code`.

    Where there are none, those of what the error was raised from.
    """
    at: BaseException | None = error
    while at is not None:
        frames = traceback.extract_tb(at.__traceback__)
        below = [n for n, frame in enumerate(frames) if frame.filename.startswith(_OURS)]
        called = frames[below[-1] + 1 :] if below else frames
        theirs = [frame for frame in called if _LIBRARY not in frame.filename]
        if theirs:
            return [
                f"{frame.filename}:{frame.lineno} in {frame.name}: {(frame.line or '').strip()}"
                for frame in theirs[-_FRAMES:]
            ]
        at = at.__cause__
    return []


def same(one: BaseException, two: BaseException | None) -> bool:
    """Whether two exceptions are one and the same fault: of one type, raised in one place."""
    if two is None:
        return False
    where = [traceback.extract_tb(error.__traceback__)[-1:] for error in (one, two)]
    there = [[(frame.filename, frame.lineno) for frame in frames] for frames in where]
    return type(one) is type(two) and there[0] == there[1]
