"""Which model adapters belong to: how their folder names it, and where that is.

A folder of adapters goes to other people and other machines, so it names its base by hub id, or by a path relative to
itself, and never by where that lay on one machine. Importing this module imports no torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import MaxLen

from vla_rl.config.errors import UserError
from vla_rl.runtime.external import read_json
from vla_rl.runtime.hub import checkpoint_folder, hub_id

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_SECTION_FILE = "vla_rl.json"
"""What we write beside adapters of the policy that they belong to."""
MOST_BASES = 4
"""Adapters on merged adapters on ..., more than this is a circle."""

_Name = Annotated[str, MaxLen(4096)]


@dataclass(frozen=True)
class _NamedBase:
    base_model_name_or_path: _Name | None = None
    revision: _Name | None = None


@dataclass(frozen=True)
class _Kind:
    model_type: str | None = None
    vla_rl: dict[str, object] | None = None
    kind: str | None = None  # of our file beside adapters


def base_reference(base: str, folder: Path) -> str:
    """How files in `folder` name the model `base` (a folder or hub id).

    A hub id, also for a snapshot in the hub's cache; else the path relative to `folder`, or to the working directory;
    and where only the root of the file system is common to all of them, the name of the base's folder.
    """
    if not base or hub_id(base) is not None:
        return base
    target, here = Path(base).resolve(), folder.resolve()
    if target.parent.name == "snapshots" and target.parent.parent.name.startswith("models--"):
        repository = target.parent.parent.name.removeprefix("models--").replace("--", "/")
        return f"{repository}@{target.name}"
    shared = (
        Path(os.path.commonpath([target, here.parent])) if target.anchor == here.anchor else None
    )
    if shared is not None and shared != Path(here.anchor):
        return Path(os.path.relpath(target, here)).as_posix()
    if target.is_relative_to(Path.cwd()):
        return target.relative_to(Path.cwd()).as_posix()
    return target.name


def find_base(named: str, folder: Path) -> str:
    """The folder or hub id that `named`, a reference in a file of `folder`, stands for on this machine."""
    if not named or Path(named).is_absolute():
        return named
    beside = os.path.normpath(folder.resolve() / named)
    if os.path.isdir(beside):  # not Path.is_dir, which raises for names that are too long
        return beside
    return named


def named_base(folder: Path) -> str:
    """What the adapters in `folder` say of their base in adapter_config.json; empty if nothing."""
    named = read_json(folder / ADAPTER_CONFIG_FILE, _NamedBase, inside=folder)
    base = named.base_model_name_or_path or ""
    found = find_base(base, folder)
    if named.revision and found == base and hub_id(f"{base}@{named.revision}") is not None:
        return f"{base}@{named.revision}"
    return found


def checkpoint_kind(reference: str | Path, base: str = "") -> str:
    """What class of policy is at `reference`, of adapters their base's; empty where no file says it.

    It is `model_type` in config.json. Of `openvla` there are several classes, which our own files tell apart as `kind`,
    in a section of config.json or in a file beside adapters. `base` replaces what adapters name. What cannot be read is
    for the loader to complain about.
    """
    named, beside = str(reference), ""
    try:
        for _ in range(MOST_BASES + 1):
            folder = checkpoint_folder(named)
            if not is_adapter_folder(folder):
                found = read_json(folder / "config.json", _Kind, inside=folder)
                own = (found.vla_rl or {}).get("kind")
                said = found.model_type or ""
                if said not in ("", "openvla", "openvla-fast"):
                    return said
                return beside or (own if isinstance(own, str) else said)
            ours = folder / ADAPTER_SECTION_FILE
            if not beside and ours.is_file():
                beside = read_json(ours, _Kind, inside=folder).kind or ""
            named, base = base or named_base(folder), ""
    except UserError:
        return ""
    return ""


def is_adapter_folder(folder: Path) -> bool:
    """Whether the folder holds adapters alone, in PEFT's format (and is no checkpoint of a training run of ours)."""
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        return False
    if not (folder / "config.json").is_file():
        return True
    return read_json(folder / "config.json", _Kind, inside=folder).vla_rl is None
