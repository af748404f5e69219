"""An engine as a child of the run: it starts with it, is watched, and ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import vla_rl
from vla_rl.config.errors import ConfigError
from vla_rl.runtime.children import start_program
from vla_rl.runtime.signals import name_of

PYTHON_VARIABLE = "VLA_RL_ENGINE_PYTHON"
VENV = ".venv-vllm"
SET_UP = "make setup-vllm"
_LAST_LINES, _LAST_WIDTH, _LAST_BYTES = 15, 300, 16000
_FAREWELL = 5.0  # seconds in which it may end by itself
# its input ends when the run does, however that ends; what a terminal or a batch system sends is the run's to decide
_PROGRAM = """
import os, sys, threading
def watch():
    while os.read(0, 4096):
        pass
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
from vla_rl.runtime.signals import leave_signals_to_parent
leave_signals_to_parent()
from vla_rl.cli import main
sys.exit(main({words!r}))
"""


def interpreter(place: Path) -> Path | None:
    """The Python that `place` is, or the one of the environment in that folder; None if there is none."""
    python = place / "bin" / "python" if place.is_dir() else place
    if not (python.is_file() and os.access(python, os.X_OK)):
        return None
    return python.absolute()  # not resolved: a link's own place is what makes it an environment


def last_words(log: Path) -> str:
    """The last lines of a process's log."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    said = [line[:_LAST_WIDTH] for line in lines if line.strip()][-_LAST_LINES:]
    return "\n".join(["Its last words:", *said]) if said else "It said nothing."


def engine_python(given: str) -> Path:
    """The interpreter of vLLM's environment: `given`, the variable, or .venv-vllm here or beside the package.

    Raises ConfigError, naming the command that makes one, where there is none.
    """
    wanted = given or os.environ.get(PYTHON_VARIABLE, "")
    places = (
        [Path(wanted)]
        if wanted
        else [root / VENV for root in (Path.cwd(), *Path(vla_rl.__file__).parents[2:3])]
    )
    for place in places:
        python = interpreter(place)
        if python is not None:
            return python
    said = "parallel.engine_python" if given else PYTHON_VARIABLE
    looked = f"{said} is {wanted}, which is no Python" if wanted else f"there is no {VENV} here"
    raise ConfigError(
        f"vLLM needs an environment of its own, and {looked}: `{SET_UP}` in the repository makes one; give its "
        f"Python as parallel.engine_python or in {PYTHON_VARIABLE}"
    )


class EngineProcess:
    """`vla-rl engine serve` in another interpreter, with this very package."""

    def __init__(
        self, python: Path, words: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        """Start it. folder: for its log, its own temporary files and a way to our package; the caller removes it."""
        self.log = folder / "engine.log"
        # a way to our package alone: what lies beside it is made for another environment
        way = folder / "package"
        way.mkdir(exist_ok=True)
        link = way / "vla_rl"
        if not link.is_symlink():
            link.symlink_to(Path(vla_rl.__file__).resolve().parent)
        # what it leaves when it is ended is removed with the folder
        env = {
            **environment,
            "PYTHONPATH": str(way),
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(folder),
        }
        env.pop("PYTHONHOME", None)
        with self.log.open("ab") as log:
            self._process = start_program(
                _PROGRAM.format(words=list(words)),
                python=python,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=env,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def obituary(self, patience: float = 2.0) -> str:
        """How it ended, with the last lines of its log."""
        how = "it does not answer"
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(patience)
            how = f"it ended with exit code {code}"
            if code < 0:
                how = f"it was ended by {name_of(-code)}"
        return f"{how}. {self.last_words()}"

    def last_words(self) -> str:
        """The last lines of its log."""
        return last_words(self.log)

    def stop(self) -> None:
        """End it and all that it has started. May be called twice."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_FAREWELL)
        # it leads a group of its own, in which its own children may outlive it
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
