"""Look at files from outside in a process of its own, where a damaged one can do no harm.

The C++ libraries for parquet and HDF5 end the whole process, or never return, on some damaged files: pyarrow aborts
where the sizes in a footer contradict each other, HDF5 loops in a heap of zeros. So the structure of a file is walked
in a child first; what the child survives is then opened here.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from vla_rl.runtime.children import start_program
from vla_rl.runtime.external import Phrase, fault

PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from vla_rl.data.inspection_process import main; main()"
)
TIMEOUT = 300.0
"""Seconds; a cold network disk can take a minute for the structure of a large file."""
REMEDY = "Fetch the file again."


def inspect(kind: str, path: Path) -> dict[str, list[int]]:
    """Bytes of each column in memory, row group by row group, of a "parquet" file; of "hdf5" only that it is sound.

    Raises UserError where the structure of the file brings its library down, and for a parquet file that is damaged.
    """
    answer = _inspector.ask(kind, path.absolute())
    if answer is None:
        found = Phrase("one whose structure is damaged: reading it crashes or never ends")
        raise fault(path, "", f"a file of the kind {kind}", found, REMEDY)
    if "error" in answer and kind == "parquet":
        reason = " ".join(answer["error"].split())[:200]
        found = Phrase(f"one that is damaged or cut short ({reason})")
        raise fault(path, "", "a parquet file", found, REMEDY)
    return answer.get("sizes", {})


class Inspector:
    """One child at a time, started when first asked and again after a file brought it down."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, kind: str, path: Path) -> dict[str, Any] | None:
        """What the child says of a file; None if the file brought it down."""
        question = json.dumps([kind, os.fspath(path)]).encode() + b"\n"
        with self._lock:
            for _ in range(2):
                answer = self._exchange(question)
                # a child that had nothing to do for long ends with 0: ask another one
                if answer is not None or self.close() != 0:
                    return answer
        return None

    def close(self) -> int | None:
        """End the child, if there is one; its exit code."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return None
        code = process.poll()
        if code is None:
            process.kill()
        with contextlib.suppress(OSError):
            process.communicate()
        return process.returncode if code is None else code

    def _exchange(self, question: bytes) -> dict[str, Any] | None:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(question)
            process.stdin.flush()
            if not select.select([process.stdout], [], [], TIMEOUT)[0]:
                return None
            line = process.stdout.readline()
        except OSError:
            line = b""
        if line:
            return json.loads(line)
        process.wait()
        return None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._owner = os.getpid()
            self._process = start_program(
                PROGRAM.format(path=sys.path),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process


_inspector = Inspector()
atexit.register(_inspector.close)
