"""Install openpi's client and vla-evaluation-harness into .venv-doors: `bash scripts/setup.sh doors`.

They play what we serve, as their users do; only `make test-doors` needs them. The new environment sees the packages of
.venv, with LIBERO and torch among them, so that little is installed; .venv itself is left as it is, since openpi's
client asks for an older numpy than we have (and works with ours).

Environment variables: those of install.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from environment_beside import EnvironmentBeside, set_up
from install import SetupError

OPENPI, HARNESS = "openpi-client==0.1.2", "vla-eval==0.8.0"
NEEDS = ("websockets>=13", "msgpack", "dm-tree", HARNESS)
FOLDER = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
WORKS = "import vla_eval.api, openpi_client.websocket_client_policy, libero, torch; print('loaded')"


class DoorsSetup(EnvironmentBeside):
    """The environment of others beside that of one checkout."""

    name = "doors"
    files = ("install_doors.py", "environment_beside.py")

    def install(self, wants_cuda: bool) -> None:
        del wants_cuda  # torch is that of .venv
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


if __name__ == "__main__":
    sys.exit(set_up(DoorsSetup))
