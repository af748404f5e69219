"""Install ManiSkill3 into .venv-maniskill, an environment of its own: `bash scripts/setup.sh maniskill`.

It is heavy (SAPIEN, planners, assets: 0.7 GB), so that .venv stays without it. The new environment sees the packages of
.venv, torch among them: ManiSkill asks for torch only through pytorch_kinematics, and must not bring another build of
it. Its own `vla-rl` plays ManiSkill and everything else. ManiSkill draws through Vulkan, whose drivers belong to the
system; what is missing is said at the end, and by `.venv-maniskill/bin/vla-rl doctor`.

Environment variables: those of install.py.
"""

from __future__ import annotations

import sys

from environment_beside import EnvironmentBeside, set_up
from install import SetupError

PACKAGES = (
    "mani-skill==3.0.1",
    "sapien==3.0.3",
)  # as the extra `maniskill` in pyproject.toml has them
KEPT = (
    "import importlib.metadata as m; print(*(f'{n}=={m.version(n)}' for n in ('torch', 'numpy')))"
)
WORKS = "import mani_skill.envs, torch; print('loaded')"
DRAWS = """
from vla_rl.config.errors import UserError
from vla_rl.envs.maniskill.package import drawing_device
try: print(f"on the {drawing_device()}")
except UserError as error: print(error)
"""


class ManiSkillSetup(EnvironmentBeside):
    """The environment of ManiSkill beside that of one checkout."""

    name = "maniskill"
    files = ("install_maniskill.py", "environment_beside.py")

    def install(self, wants_cuda: bool) -> None:
        self.see_ours()
        kept = self.ask(KEPT).split()
        if not kept:
            raise SetupError("cannot see torch and numpy of .venv: make setup-dev comes first")
        constraints = self.venv / "constraints.txt"
        constraints.write_text("\n".join(kept) + "\n")
        self.pip("ManiSkill3", ["-c", str(constraints), *PACKAGES])
        self.pip("vla-rl", ["--no-deps", "-e", str(self.root)])
        self.refuse_strays(wants_cuda)
        if not self.ask(WORKS).endswith("loaded"):
            raise SetupError(f"installed, but it does not load. Try: {self.python} -c {WORKS!r}")
        print(f"  drawing: {self.ask(DRAWS) or 'cannot tell; ask vla-rl doctor'}")


if __name__ == "__main__":
    sys.exit(set_up(ManiSkillSetup))
