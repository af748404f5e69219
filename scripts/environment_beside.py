"""What installs into an environment of its own beside .venv has in common: vLLM, and other projects' clients."""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

from install import (
    ROOT,
    Setup,
    SetupError,
    attempted,
    read_stamp,
    wants_cuda_build,
    write_stamp,
)

PACKAGES = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
"""Run by the new Python: the folder of its packages."""


class EnvironmentBeside(Setup, ABC):
    """The environment `.venv-NAME` beside that of one checkout."""

    name: str
    files: tuple[str, ...]
    """Of scripts/: when one of them changes, the environment is made anew."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.venv = root / f".venv-{self.name}"
        self.python = self.venv / "bin" / "python"
        self.log = self.venv / "setup.log"
        self.stamp = self.venv / "setup.json"

    def fingerprint(self, wants_cuda: bool) -> str:
        texts = [(self.root / "scripts" / file).read_text() for file in self.files]
        return super().fingerprint(wants_cuda) + "".join(texts)

    def run(self, extra: str) -> None:
        started = time.perf_counter()
        wants_cuda = wants_cuda_build(os.environ.get("VLA_RL_TORCH", ""))
        fingerprint = self.fingerprint(wants_cuda)
        if extra in read_stamp(self.stamp, fingerprint)["extras"] and self.python.exists():
            print(f"setup: {self.venv.name} is up to date")
            return
        print(f"setup: {extra} into {self.venv} (Python {sys.version.split()[0]})")
        self.create_environment()
        self.install(wants_cuda)
        write_stamp(self.stamp, fingerprint, {"extras": [extra], "rendering": ""})
        print(f"setup: done in {time.perf_counter() - started:.0f} s")

    def see_ours(self) -> None:
        """Let the new environment see the packages of .venv; pip then finds there what need not be installed again."""
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        ours = self.root / ".venv" / "lib" / version / "site-packages"
        if not ours.is_dir():
            raise SetupError(
                f"{ours} is missing: make setup-dev, with the same Python, comes first"
            )
        Path(self.ask(PACKAGES), "product.pth").write_text(f"{ours}\n")

    @abstractmethod
    def install(self, wants_cuda: bool) -> None:
        """Install into the empty environment; SetupError where it does not work in the end."""


def set_up(kind: type[EnvironmentBeside]) -> int:
    """The exit code of setting up what `kind` installs."""
    return attempted(kind(ROOT), kind.name)
