"""What is needed to tell later how a run came about."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vla_rl.runtime.cpus import available_cpus

_PACKAGES = ("vla-rl", "torch", "transformers", "numpy")
_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]


def describe_run(command: Sequence[str], packages: Sequence[str] = ()) -> dict[str, Any]:
    """Command, time, code revision, versions and machine, as JSON values."""
    return {
        "command": list(command),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": git_revision(),
        "versions": versions(packages),
        "machine": {
            "platform": platform.platform(),
            "cpus": available_cpus(),
            "gpus": gpu_names(),
        },
    }


def versions(packages: Sequence[str] = ()) -> dict[str, str | None]:
    """Versions of Python and of the packages that can change a result; None where not installed.

    `packages` are those of the simulator that was played (`Benchmark.packages`).
    """
    return {"python": platform.python_version()} | package_versions((*_PACKAGES, *packages))


def package_versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Installed versions of packages; None where not installed."""
    return {name: _version(name) for name in packages}


def code_digest() -> str:
    """Digest of this package's source files: what two machines run is the same where theirs is."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE_FOLDER.rglob("*.py")):
        digest.update(f"{file.relative_to(_PACKAGE_FOLDER)}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def git_revision() -> dict[str, Any] | None:
    """{"revision", "dirty"} of the checkout this package runs from; None for an installed copy."""
    # a copy inside somebody else's checkout (a .venv, say) must not take that one's revision
    if _run("git", "ls-files", "--error-unmatch", str(_PACKAGE_FOLDER / "__init__.py")) is None:
        return None
    revision = _run("git", "rev-parse", "HEAD")
    changes = _run("git", "status", "--porcelain", "--untracked-files=no")
    return None if revision is None else {"revision": revision, "dirty": bool(changes)}


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    return (_run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _run(*command: str) -> str | None:
    """What the command prints, None if it fails or is not there."""
    try:
        done = subprocess.run(
            command, cwd=_PACKAGE_FOLDER, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
