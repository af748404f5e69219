"""Install VLA-RL into .venv: `python scripts/install.py [quickstart|dev|docs|ray]`.

Standard library only, asks nothing, needs no display. In order: the virtual environment, torch (a CPU
build where there is no NVIDIA GPU, a CUDA build where there is one), this package with its extras, and
Mesa's off-screen rendering where it is missing and may be installed. What has been done is written to
.venv/setup.json, so that a second run returns at once.

Environment variables:
    PYTHON              the interpreter to use (read by setup.sh)
    VLA_RL_TORCH        "cpu" or "cuda" instead of looking for a GPU
    TORCH_INSTALL_ARGS  further arguments for `pip install torch`, such as --index-url or --find-links
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
TORCH_VERSION = "2.13.0"
EXTRAS = ("quickstart", "dev", "docs", "ray")
COVERED_BY = {
    "quickstart": ("quickstart", "dev"),
    "dev": ("dev",),
    "docs": ("docs",),
    "ray": ("ray",),
}
CUDA_PACKAGES = ("nvidia-", "cuda-", "triton")
EGL_PACKAGES = ("libegl1", "libgl1", "libgl1-mesa-dri", "libopengl0")
OSMESA_PACKAGES = ("libosmesa6", "libgl1", "libopengl0")
# Asked of the installed package: what can draw here, and how to get something that can.
FIND_RENDERER = (
    "from vla_rl.diagnostics import machine; print('backend:' + machine.find_renderer())"
)
HOW_TO_RENDER = "from vla_rl.diagnostics import machine; print(machine.install_rendering_command())"
HEARTBEAT = 20.0  # seconds between signs of life of a long step

# Settings of the surroundings that would send packages elsewhere than into .venv.
FOREIGN_SETTINGS = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")


class SetupError(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def main(arguments: Sequence[str]) -> int:
    extra = arguments[0] if arguments else "quickstart"
    if len(arguments) > 1 or extra not in EXTRAS:
        print(f"setup: expected one of {', '.join(EXTRAS)}, got {' '.join(arguments)!r}")
        return 2
    return attempted(Setup(ROOT), extra)


def attempted(setup: Setup, extra: str) -> int:
    """The exit code of a set-up, whose errors are said in one line."""
    try:
        setup.run(extra)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: stopped; run it again to go on where it was", file=sys.stderr)
        return 130
    return 0


class Setup:
    """One set-up of one checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.log = self.venv / "setup.log"
        self.stamp = self.venv / "setup.json"

    def run(self, extra: str) -> None:
        started = time.perf_counter()
        wants_cuda = wants_cuda_build(os.environ.get("VLA_RL_TORCH", ""))
        fingerprint = self.fingerprint(wants_cuda)
        done = read_stamp(self.stamp, fingerprint)
        if any(name in done["extras"] for name in COVERED_BY[extra]) and self.python.exists():
            if done["rendering"] or extra != "quickstart":
                print(f"setup: {self.venv.name} is up to date ({extra})")
                return
        else:
            print(f"setup: {extra} into {self.venv} (Python {sys.version.split()[0]})")
            self.create_environment()
            self.install_torch(wants_cuda)
            self.install_package(extra)
            self.refuse_strays(wants_cuda)
            done["extras"] = sorted({*done["extras"], extra})
            write_stamp(self.stamp, fingerprint, done)
        if extra in ("quickstart", "dev"):
            done["rendering"] = self.install_rendering(required=extra == "quickstart")
            write_stamp(self.stamp, fingerprint, done)
        print(f"setup: done in {time.perf_counter() - started:.0f} s")

    def fingerprint(self, wants_cuda: bool) -> str:
        """Hash of everything that decides what .venv must hold."""
        digest = hashlib.sha256()
        for name in ("pyproject.toml", "scripts/install.py", "scripts/constraints.txt"):
            digest.update((self.root / name).read_bytes())
        torch_arguments = os.environ.get("TORCH_INSTALL_ARGS", "")
        facts = [str(self.venv), sys.version, str(wants_cuda), torch_arguments]
        digest.update("\0".join(facts).encode())
        return digest.hexdigest()

    # ----------------------------------------------------------------------------------------------
    # Steps

    def create_environment(self) -> None:
        """Make .venv, or keep it where its interpreter runs and has this one's version."""
        if self.python.exists():
            code = "import sys, pip; print(sys.version, sys.prefix)"
            answer = subprocess.run(
                [str(self.python), "-c", code], capture_output=True, text=True, check=False
            )
            if answer.stdout.strip() == f"{sys.version} {self.venv}":
                return
        command = [sys.executable, "-m", "venv", "--clear", str(self.venv)]
        if self.step("virtual environment", command, may_fail=True):
            return
        minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        package = f"python{minor}-venv"
        if not (
            install_system_packages([package])
            and self.step("virtual environment, again", command, may_fail=True)
        ):
            raise SetupError(
                "this Python cannot make virtual environments. "
                f"On Debian and Ubuntu: sudo apt-get install -y {package}"
            )

    def install_torch(self, wants_cuda: bool) -> None:
        """Install torch before anything that depends on it could bring in another build."""
        present = self.ask("import torch; print(torch.__version__, bool(torch.version.cuda))")
        version, _, has_cuda = present.partition(" ")
        if version.split("+")[0] == TORCH_VERSION and has_cuda == str(wants_cuda):
            return
        given = os.environ.get("TORCH_INSTALL_ARGS", "")
        name = f"torch {TORCH_VERSION}, {'CUDA' if wants_cuda else 'CPU'} build"
        if given:
            self.pip(name, [f"torch=={TORCH_VERSION}", *shlex.split(given)])
        elif wants_cuda:
            self.install_cuda_torch(name)
        else:
            self.install_cpu_torch(name)
        if not self.ask("import torch; print(float(torch.ones(2, 2).sum()))") == "4.0":
            raise SetupError(f"torch was installed but does not work; see {self.log}")

    def install_cpu_torch(self, name: str) -> None:
        """A CPU build from wherever pip looks, else through uv, which knows PyTorch's CPU index."""
        planned = self.plan([f"torch=={TORCH_VERSION}"])
        if planned and not cuda_packages(planned):
            self.pip(name, [f"torch=={TORCH_VERSION}"])
            return
        if planned:
            print("  pip would bring CUDA packages; taking the CPU build through uv")
        if self.uv(name, ["--torch-backend=cpu", f"torch=={TORCH_VERSION}"]):
            return
        raise SetupError(
            f"found no CPU build of torch {TORCH_VERSION} (log: {self.log}), and this machine has no "
            "GPU, so the gigabytes of a CUDA build were not fetched. Look up the index for CPU at "
            "pytorch.org, then: TORCH_INSTALL_ARGS='--index-url <its address>' make setup. "
            "Or take the CUDA build all the same: VLA_RL_TORCH=cuda make setup"
        )

    def install_cuda_torch(self, name: str) -> None:
        """The CUDA build for this machine's driver through uv, else the index's default build."""
        if self.uv(name, ["--torch-backend=auto", f"torch=={TORCH_VERSION}"]):
            return
        # === matches the version literally: a local "+cpu" file does not count as it.
        for requirement in (f"torch==={TORCH_VERSION}", f"torch=={TORCH_VERSION}"):
            if self.pip(name, [requirement], may_fail=True):
                break
        else:
            raise SetupError(f"could not install torch {TORCH_VERSION}; see {self.log}")
        if self.ask("import torch; print(torch.cuda.is_available())") != "True":
            print(
                "  note: torch does not see the GPU (CPU build, or an old driver); see `vla-rl doctor`"
            )

    def install_package(self, extra: str) -> None:
        torch = self.ask("import torch; print(torch.__version__)")
        constraints = self.venv / "constraints.txt"
        tested = (self.root / "scripts" / "constraints.txt").read_text()
        constraints.write_text(f"{tested}\ntorch=={torch}\n")
        requirement = f"{self.root}[{extra}]"
        self.pip(f"vla-rl[{extra}]", ["-c", str(constraints), "-e", requirement])

    def refuse_strays(self, wants_cuda: bool) -> None:
        """Nothing may have brought a second torch build, CUDA packages or torchvision."""
        code = "import importlib.metadata as m; print(*{d.name for d in m.distributions()})"
        installed = self.ask(code).split()
        strays = [name for name in installed if name.lower() == "torchvision"]
        if not wants_cuda and not os.environ.get("TORCH_INSTALL_ARGS"):
            strays += cuda_packages(installed)
        if strays:
            raise SetupError(
                f"packages that do not belong here were installed: {', '.join(sorted(strays))}. "
                "Remove .venv and run set-up again; please report it if they come back"
            )

    def install_rendering(self, *, required: bool) -> str:
        """Name of a backend that draws off screen, installing Mesa where allowed; "" if there is none."""
        backend = self.find_renderer()
        if backend:
            return backend
        for packages in (EGL_PACKAGES, OSMESA_PACKAGES):
            if install_system_packages(packages):
                backend = self.find_renderer()
                if backend:
                    return backend
        advice = self.ask(HOW_TO_RENDER)
        message = f"the simulators cannot draw: no working EGL or OSMesa. Type:\n    {advice}"
        if required:
            raise SetupError(f"{message}\nthen run this again")
        print(f"  {message}\n  Going on: tests that need pictures will be skipped.")
        return ""

    def find_renderer(self) -> str:
        started = time.perf_counter()
        answer = self.ask(FIND_RENDERER)
        if not answer.startswith("backend:"):
            raise SetupError(
                f"the installed package does not load. Try: {self.python} -c {FIND_RENDERER!r}"
            )
        backend = answer.removeprefix("backend:")
        print(
            f"  {'rendering: ' + (backend or 'none yet'):<44}{time.perf_counter() - started:5.0f} s"
        )
        return backend

    # ----------------------------------------------------------------------------------------------
    # Doing things

    def pip(self, name: str, arguments: Sequence[str], *, may_fail: bool = False) -> bool:
        quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        command = [str(self.python), "-m", "pip", "install", *quiet, "--prefer-binary"]
        return self.step(name, [*command, *arguments], may_fail=may_fail)

    def plan(self, requirements: Sequence[str]) -> list[str]:
        """Names of the packages that pip would install for `requirements`; empty if it cannot tell."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            arguments = ["--dry-run", "--report", str(report), *requirements]
            if not self.pip("looking at torch's builds", arguments, may_fail=True):
                return []
            plan = json.loads(report.read_text())
        return [item["metadata"]["name"] for item in plan["install"]]

    def uv(self, name: str, arguments: Sequence[str]) -> bool:
        """Install through uv: the one on the path, else one that pip brings into .venv."""
        tool = shutil.which("uv") or str(self.venv / "bin" / "uv")
        if not Path(tool).exists() and not self.pip("uv", ["uv"], may_fail=True):
            return False
        command = [tool, "pip", "install", "--python", str(self.python), *arguments]
        return self.step(name, command, may_fail=True)

    def ask(self, code: str) -> str:
        """What `code` prints in .venv's Python; "" if it fails."""
        answer = subprocess.run(
            [str(self.python), "-c", code],
            capture_output=True, text=True, check=False, cwd=self.root, env=clean_environment(),
        )  # fmt: skip
        return answer.stdout.strip() if answer.returncode == 0 else ""

    def step(self, name: str, command: Sequence[str], *, may_fail: bool = False) -> bool:
        """Run `command`, its output in the log, with its name and time on one line here."""
        self.venv.mkdir(exist_ok=True)
        with tempfile.TemporaryFile("w+") as output:
            seconds, code = watch(name, command, output)
            output.seek(0)
            text = output.read()
        with self.log.open("a") as log:
            log.write(f"$ {shlex.join(command)}\n{text}\n")
        print(f"  {name:<44}{seconds:5.0f} s{'' if code == 0 else '  did not work'}", flush=True)
        if code == 0 or may_fail:
            return code == 0
        tail = "\n".join(text.splitlines()[-15:])
        raise SetupError(f"{name} failed (whole log: {self.log}):\n{tail}")


def watch(name: str, command: Sequence[str], output: IO[str]) -> tuple[float, int]:
    """Run `command` to its end with a sign of life now and then; (seconds, exit code)."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=clean_environment(),
    )  # fmt: skip
    try:
        while True:
            try:
                code = process.wait(HEARTBEAT)
                return time.perf_counter() - started, code
            except subprocess.TimeoutExpired:
                waited = time.perf_counter() - started
                print(f"    {name}: still at it, {waited:.0f} s", flush=True)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in FOREIGN_SETTINGS}


def wants_cuda_build(choice: str) -> bool:
    """Whether torch should be a CUDA build: as `choice` ("cpu", "cuda") says, else if there is a GPU."""
    if choice not in ("", "cpu", "cuda"):
        raise SetupError(f"VLA_RL_TORCH must be cpu or cuda, got {choice!r}")
    return has_nvidia_gpu() if not choice else choice == "cuda"


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver shows a GPU. A driver's tool without a GPU behind it does not count."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        answer = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and "GPU " in answer.stdout


def cuda_packages(names: Iterable[str]) -> list[str]:
    """Those of `names` that belong to a CUDA build of torch."""
    return [name for name in names if name.lower().replace("_", "-").startswith(CUDA_PACKAGES)]


def read_stamp(path: Path, fingerprint: str) -> dict:
    """What is done already, {"extras": [...], "rendering": ""}, for this very fingerprint."""
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError):
        stamp = {}
    if stamp.get("fingerprint") != fingerprint:
        return {"extras": [], "rendering": ""}
    return {"extras": stamp["extras"], "rendering": stamp["rendering"]}


def write_stamp(path: Path, fingerprint: str, done: dict) -> None:
    path.write_text(json.dumps({"fingerprint": fingerprint, **done}, indent=2) + "\n")


def install_system_packages(packages: Sequence[str]) -> bool:
    """Install Debian packages if that is possible without asking anything; whether it worked."""
    prefix = privilege()
    if shutil.which("apt-get") is None or prefix is None:
        return False
    print(f"  system packages: {' '.join(packages)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    install = [*apt, "install", "-y", "--no-install-recommends", *packages]
    # A fresh container has no package lists; a machine in use often has, and then needs no update.
    for command in (install, [*apt, "update"], install):
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        if command is install and answer.returncode == 0:
            return True
    reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
    print(f"  apt-get did not work: {reason}", flush=True)
    return False


def privilege() -> list[str] | None:
    """Prefix for commands that need root: nothing as root, sudo where it asks nothing, else None."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo is None:
        return None
    answer = subprocess.run(
        [sudo, "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return [sudo, "-n"] if answer.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
