"""Install openpi's client and vla-evaluation-harness into .venv-doors: `bash scripts/setup.sh doors`.

They play what we serve, as their users do; only `make test-doors` needs them. The new environment sees the packages of
.venv, with LIBERO and torch among them, so that little is installed; .venv itself is left as it is, since openpi's
client asks for an older numpy than we have (and works with ours).

Environment variables: those of install.py.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from install import ROOT, Setup, SetupError, read_stamp, wants_cuda_build, write_stamp

OPENPI, HARNESS = "openpi-client==0.1.2", "vla-eval==0.8.0"
NEEDS = ("websockets>=13", "msgpack", "dm-tree", HARNESS)
FOLDER = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
WORKS = "import vla_eval.api, openpi_client.websocket_client_policy, libero, torch; print('loaded')"


class DoorsSetup(Setup):
    """The environment of others beside that of one checkout."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.venv = root / ".venv-doors"
        self.python = self.venv / "bin" / "python"
        self.log = self.venv / "setup.log"
        self.stamp = self.venv / "setup.json"

    def fingerprint(self, wants_cuda: bool) -> str:
        own = (self.root / "scripts" / "install_doors.py").read_text()
        return super().fingerprint(wants_cuda) + own

    def run(self, extra: str) -> None:
        started = time.perf_counter()
        fingerprint = self.fingerprint(wants_cuda_build(os.environ.get("VLA_RL_TORCH", "")))
        if extra in read_stamp(self.stamp, fingerprint)["extras"] and self.python.exists():
            print(f"setup: {self.venv.name} is up to date")
            return
        print(f"setup: {extra} into {self.venv} (Python {sys.version.split()[0]})")
        self.create_environment()
        # first of all: pip then finds there what need not be installed again
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        ours = self.root / ".venv" / "lib" / version / "site-packages"
        if not ours.is_dir():
            raise SetupError(
                f"{ours} is missing: make setup-dev, with the same Python, comes first"
            )
        Path(self.ask(FOLDER), "product.pth").write_text(f"{ours}\n")
        self.pip("vla-evaluation-harness", [*NEEDS])
        self.pip("openpi's client", ["--no-deps", OPENPI])
        if self.ask(WORKS) != "loaded":
            raise SetupError(f"installed, but it does not load. Try: {self.python} -c {WORKS!r}")
        write_stamp(self.stamp, fingerprint, {"extras": [extra], "rendering": ""})
        print(f"setup: done in {time.perf_counter() - started:.0f} s")


def main() -> int:
    try:
        DoorsSetup(ROOT).run("doors")
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: stopped; run it again to go on where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
