"""Checkpoints: safetensors and JSON in a folder that is either whole or not there.

    iteration-000010/
      manifest.json         size and SHA-256 of every other file
      state.json            counters, curriculum, random states, ...
      tensors.safetensors   torch tensors: optimizer, critic, buffers
      arrays.safetensors    numpy arrays: simulator snapshots, ...
      policy/               what `Policy.save` writes; can be used on its own

Nothing is pickled. A checkpoint is written beside its final place, synced to the disk and renamed, so
that neither a full disk nor kill -9 can leave half of one under the final name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.runtime import external
from vla_rl.runtime.files import cannot_write, finish_folder, read_json
from vla_rl.runtime.partial import unfinished_path
from vla_rl.runtime.trees import Array, join_arrays, split_arrays

FORMAT = "vla-rl checkpoint 1"
MANIFEST, STATE, TENSORS, ARRAYS = (
    "manifest.json",
    "state.json",
    "tensors.safetensors",
    "arrays.safetensors",
)
POLICY = "policy"
logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to something else."""


@dataclass(frozen=True)
class Checkpoint:
    """What `write_checkpoint` was given: tensors on the CPU and arrays by name, state, policy folder."""

    tensors: dict[str, Array]
    state: dict[str, Any]
    policy_folder: Path


def write_checkpoint(
    folder: Path,
    *,
    tensors: Mapping[str, Array],
    state: Mapping[str, Any],
    write_policy: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint into `folder`, replacing one of the same name.

    `tensors` may mix torch tensors (any device) and numpy arrays; `state` must be JSON values.
    `write_policy` gets the path `<folder>/policy` to write the policy to. Raises UserError where the disk is full
    or cannot be written; nothing is left behind then and other checkpoints are untouched.
    """
    aside = unfinished_path(folder, "partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _write_contents(aside, tensors, state, write_policy)
        finish_folder(aside, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(_why_not(folder, error)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify and read a checkpoint. Raises CheckpointError naming the file that is damaged."""
    verify_checkpoint(folder)
    tensors: dict[str, Array] = {
        **safetensors.torch.load_file(folder / TENSORS),
        **safetensors.numpy.load_file(folder / ARRAYS),
    }
    return Checkpoint(tensors, read_json(folder / STATE), folder / POLICY)


def verify_checkpoint(folder: Path) -> None:
    """Compare every file with the manifest; CheckpointError for the first that is missing or differs."""
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}: there is no such folder")
    damage = find_damage(folder)
    if damage:
        before = previous_checkpoint(folder)
        remedy = f"use the one before it, {before}" if before else "there is no whole one before it"
        raise CheckpointError(f"checkpoint {folder} is damaged: {damage}; {remedy}")


def is_whole(folder: Path) -> bool:
    """Whether `folder` is a checkpoint of which every file is as it was written."""
    return folder.is_dir() and find_damage(folder) is None


def first_whole(folders: Sequence[Path]) -> Path | None:
    """The first of these checkpoints that is whole; the damaged ones before it are named in the log.

    Raises CheckpointError for one before it that another version of VLA-RL wrote: it is not damaged, and going on
    from an earlier one would leave its progress behind.
    """
    for folder in folders:
        damage = find_damage(folder)
        if damage is None:
            return folder
        if isinstance(damage, _Foreign):
            raise CheckpointError(
                f"{folder}: {damage}. It was written by another version of VLA-RL: go on with that version, or move "
                "the folder away to go on from an earlier checkpoint."
            )
        logger.warning("checkpoint %s is damaged: %s; not counted", folder, damage)
    return None


def previous_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint beside `folder` that comes before it by name."""
    if not folder.parent.is_dir():
        return None
    for other in sorted(folder.parent.iterdir(), reverse=True):
        if not other.name.startswith(".") and other.name < folder.name and is_whole(other):
            return other
    return None


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, name: str = "optimizer"
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The optimizer's whole state as (tensors named "<name>/...", JSON). `name` keeps several apart."""
    return split_arrays(optimizer.state_dict(), name)


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Array],
    state: Mapping[str, Any],
    place: Callable[[Tensor, Tensor], Tensor] = lambda value, parameter: value,
) -> None:
    """Put an optimizer over the same parameters back into the state that `flatten_optimizer` took.

    It then goes on bit for bit, learning rates included. `tensors` may hold other names as well. place: what to keep of
    a tensor that belongs to a parameter.
    Raises CheckpointError where the parameters are not those of the checkpoint.
    """
    try:
        saved = join_arrays(tensors, state)
    except KeyError as error:
        raise CheckpointError(f"the checkpoint lacks the optimizer's tensor {error}") from error
    own = [p for group in optimizer.param_groups for p in group["params"]]
    ids = [index for group in saved["param_groups"] for index in group["params"]]
    if len(own) != len(ids):
        raise CheckpointError(
            f"the checkpoint's optimizer trains {len(ids)} parameters, this policy has {len(own)}: "
            "it belongs to another configuration"
        )
    for parameter, index in zip(own, ids, strict=True):
        of_parameter = saved["state"].get(index, {})
        for key, value in of_parameter.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise CheckpointError(
                    f"optimizer state {key} of parameter {index}: the checkpoint has shape "
                    f"{tuple(value.shape)}, this policy {tuple(parameter.shape)}: "
                    "it belongs to another configuration"
                )
            if isinstance(value, Tensor):
                of_parameter[key] = place(value, parameter)
    try:
        optimizer.load_state_dict(saved)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's optimizer does not fit: {error}") from error


def _write_contents(
    folder: Path,
    tensors: Mapping[str, Array],
    state: Mapping[str, Any],
    write_policy: Callable[[Path], None] | None,
) -> None:
    safetensors.torch.save_file(_storable(tensors), folder / TENSORS)
    arrays = {k: np.ascontiguousarray(v) for k, v in tensors.items() if isinstance(v, np.ndarray)}
    # ascontiguousarray makes a 0-d array 1-d
    safetensors.numpy.save_file(
        {key: value.reshape(np.shape(tensors[key])) for key, value in arrays.items()},
        folder / ARRAYS,
    )
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
    if write_policy is not None:
        write_policy(folder / POLICY)
    entries: dict[str, Any] = {}
    for path in _files(folder):
        entries[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
    manifest = json.dumps({"format": FORMAT, "files": entries}, indent=2)
    (folder / MANIFEST).write_text(manifest + "\n", encoding="utf-8")


def _storable(tensors: Mapping[str, Array]) -> dict[str, Tensor]:
    """Contiguous CPU tensors without shared storage, which the format refuses."""
    storable: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            tensor = value.detach().cpu().contiguous()
            if tensor.untyped_storage().data_ptr() in seen:
                tensor = tensor.clone()
            seen.add(tensor.untyped_storage().data_ptr())
            storable[name] = tensor
    return storable


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Manifest:
    format: str
    files: dict[str, _File]


class _Foreign(str):
    """What is wrong with a checkpoint that may be whole, but is not of this version's format."""


def find_damage(folder: Path, below: str = "") -> str | None:
    """What is wrong with the first file that is not as it was written, None if all are.

    below: look only at files in this folder of the checkpoint, `policy` for example.
    """
    path = folder / MANIFEST
    try:
        found = read_json(path).get("format")
        if found != FORMAT:
            ours = isinstance(found, str) and found.startswith(FORMAT.rstrip("0123456789"))
            kind = _Foreign if ours else str
            return kind(f"{MANIFEST} says format {found!r}, expected {FORMAT!r}")
        manifest = external.read_json(path, _Manifest, remedy="")
        for name, entry in manifest.files.items():
            if not name.startswith(f"{below}/" if below else ""):
                continue
            file = external.path_inside(folder, name, source=path, key="files", remedy="")
            if not file.is_file():
                return f"{name} is missing"
            size = file.stat().st_size
            if size != entry.bytes:
                return f"{name} has {size} bytes instead of {entry.bytes}"
            if _sha256(file) != entry.sha256:
                return f"{name} has changed, its SHA-256 differs"
    except (UserError, OSError) as error:
        return str(error)
    return None


def _why_not(folder: Path, error: Exception) -> str:
    # safetensors wraps the system's error in text such as "I/O error: ... (os error 28)"
    text = str(error)
    if isinstance(error, SafetensorError) and "os error " in text:
        number = int(text.rpartition("os error ")[2].split(")")[0])
        error = OSError(number, os.strerror(number))
    return cannot_write(folder, error) + "; earlier checkpoints are untouched"
