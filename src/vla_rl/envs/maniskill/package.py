"""Finds ManiSkill and a Vulkan driver that SAPIEN can draw with, or says in one line what is missing.

SAPIEN draws through Vulkan: on an NVIDIA GPU, or on CPU cores with lavapipe, Mesa's software driver. It needs
`VK_KHR_external_semaphore_fd` of the driver, which lavapipe has from Mesa 24.3 on.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from vla_rl.config.errors import UserError
from vla_rl.runtime.extras import need

TITLE = "ManiSkill"
HOW_TO_DRAW = (
    "install the NVIDIA driver's Vulkan part, or Mesa's lavapipe of Mesa 24.3 or newer (Debian and Ubuntu: "
    "mesa-vulkan-drivers), or name one unpacked elsewhere by VK_ICD_FILENAMES (docs/maniskill.md)"
)
_FOLDERS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d")
_NAMING = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
"""Variables that name Vulkan's drivers, the one that is heeded first."""


@cache
def load_maniskill() -> Any:
    """The module `mani_skill`, its tasks registered. UserError where it is missing or does not load."""
    need("mani_skill", "sapien", purpose=TITLE)
    os.environ.setdefault("LP_NUM_THREADS", "0")  # lavapipe draws in the thread that asks
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it takes the Vulkan loader that it brings
            maniskill = import_module("mani_skill")
            import_module("mani_skill.envs")
    except (ImportError, OSError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise UserError(
            f"{TITLE} is installed but does not load ({type(error).__name__}: {words}): make setup-maniskill installs "
            "it into an environment of its own"
        ) from error
    maniskill.logger.setLevel("ERROR")
    return maniskill


@cache
def drawing_device() -> str:
    """What `render_backend` should be: gpu where SAPIEN finds CUDA's device, else cpu.

    UserError, with the drivers that there are, where SAPIEN cannot draw with any.
    """
    load_maniskill()
    backend, failure = _try_to_draw()
    if failure:
        raise UserError(f"{TITLE} cannot draw: {failure}. To mend it, {HOW_TO_DRAW}")
    return backend


def _try_to_draw() -> tuple[str, str]:
    """(`render_backend`, why SAPIEN cannot draw, empty if it can)."""
    sapien = import_module("sapien")
    sapien.render.set_log_level("error")
    backend = "gpu"
    try:
        device = sapien.Device("cuda")
    except RuntimeError:
        backend, device = "cpu", sapien.Device("cpu")
    try:
        sapien.render.RenderSystem(device)
    except RuntimeError as error:
        words = " ".join(str(error).split())
        return backend, f"{drivers_in_words()}; none of it serves SAPIEN ({words})"
    return backend, ""


def drivers_in_words() -> str:
    """Which Vulkan drivers the loader is told of here; a finding, no judgement of whether they work."""
    for variable in _NAMING:
        named = [part for part in os.environ.get(variable, "").split(os.pathsep) if part]
        if named:
            lost = [part for part in named if not Path(part).is_file()]
            if lost:
                return f"{variable} names {', '.join(lost)}, which is no file"
            return f"{variable} names {_listed(map(Path, named))}"
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    found = [
        manifest
        for folder in (*_FOLDERS, f"{home}/vulkan/icd.d")
        for manifest in sorted(Path(folder).glob("*.json"))
    ]
    return f"there is {_listed(found)}" if found else "no Vulkan driver is installed"


def _listed(manifests: Any) -> str:
    return ", ".join(f"{path.name} ({_version(path)})" for path in manifests)


def _version(manifest: Path) -> str:
    """The version of Vulkan that a driver's manifest says it has."""
    try:
        return f"Vulkan {json.loads(manifest.read_text())['ICD']['api_version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "unreadable"


def probe() -> None:
    """What `vla-rl doctor` runs in another interpreter: prints what there is, or ends with the reason."""
    try:
        load_maniskill()
    except UserError as error:
        sys.exit(f"UserError: {error}")
    backend, failure = _try_to_draw()
    if failure:
        sys.exit(f"UserError: cannot draw: {failure}")
    summary = import_module("sapien").render.get_device_summary()
    driver = summary.splitlines()[0].removeprefix("GPU: ")
    print(f"draws with {driver} (render_backend {backend})")
