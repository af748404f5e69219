"""Install openpi's client and vla-evaluation-harness into .venv-doors: `bash scripts/setup.sh doors`.

They play what we serve, as their users do; only `make test-doors` needs them. The new environment sees the packages of
.venv, with LIBERO and torch among them, so that little is installed; .venv itself is left as it is, since openpi's
client asks for an older numpy than we have (and works with ours).

Environment variables: those of install.py.
"""

from __future__ import annotations

import sys

from environment_beside import EnvironmentBeside, set_up
from install import SetupError

OPENPI, HARNESS = "openpi-client==0.1.2", "vla-eval==0.8.0"
NEEDS = ("websockets>=13", "msgpack", "dm-tree", HARNESS)
WORKS = "import vla_eval.api, openpi_client.websocket_client_policy, libero, torch; print('loaded')"


class DoorsSetup(EnvironmentBeside):
    """The environment of others beside that of one checkout."""

    name = "doors"
    files = ("install_doors.py", "environment_beside.py")

    def install(self, wants_cuda: bool) -> None:
        del wants_cuda  # torch is that of .venv
        self.see_ours()
        self.pip("vla-evaluation-harness", [*NEEDS])
        self.pip("openpi's client", ["--no-deps", OPENPI])
        if self.ask(WORKS) != "loaded":
            raise SetupError(f"installed, but it does not load. Try: {self.python} -c {WORKS!r}")


if __name__ == "__main__":
    sys.exit(set_up(DoorsSetup))
