"""Folder or hub id: where the files of a checkpoint lie on this machine.

A checkpoint is named by a folder or by an id of the Hugging Face hub (`openvla/openvla-7b`, `owner/name@revision`).
Of a hub repository only JSON and safetensors files are fetched, nothing that could run. Importing this module
imports no torch.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vla_rl.config.errors import UserError
from vla_rl.runtime.extras import need

LOG = logging.getLogger(__name__)
HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt", "*.model")
DATASET_PATTERNS = ("*.json", "*.jsonl", "*.parquet", "*.mp4", "*.png", "*.jpg", "*.npz")


def hub_id(reference: str | Path) -> tuple[str, str | None] | None:
    """(repository, revision) where `reference` is a hub id, None where it names a folder.

    A folder that exists is a folder, and so is anything below one: `runs/sft` never leads to a download while
    there is a folder `runs`.
    """
    text = str(reference)
    found = HUB_ID.fullmatch(text)
    if found is None or os.path.exists(text) or Path(text).parts[0] in ("runs", "checkpoints"):
        return None
    if os.path.exists(Path(text).parent):
        return None
    return found[1], found[2]


def hidden_id(reference: str | Path) -> str:
    """A hint, where `reference` looks like a hub id and is taken for a path because a folder has its first name."""
    text = str(reference)
    owner = Path(text).parts[0] if Path(text).parts else ""
    if hub_id(text) is not None or not HUB_ID.fullmatch(text) or not Path(owner).is_dir():
        return ""
    return (
        f". There is a folder {owner!r} here, so that {text} is taken for a path in it: if the hub's repository is "
        f"meant, rename that folder or start vla-rl in another one"
    )


def dataset_folder(reference: str | Path) -> Path:
    """The local folder of a dataset, fetched from the hub as `checkpoint_folder` does; of its tables and pictures."""
    return _local_folder(reference, "dataset", DATASET_PATTERNS)


def checkpoint_folder(reference: str | Path) -> Path:
    """The local folder of a checkpoint, fetched from the hub or found in its cache where `reference` is a hub id.

    Folders are returned as they are, whether they exist or not. Raises UserError if huggingface_hub is not
    installed, or the repository is neither reachable nor cached.
    """
    return _local_folder(reference, "model", PATTERNS)


def _local_folder(reference: str | Path, repo_type: str, patterns: Sequence[str]) -> Path:
    named = hub_id(reference)
    if named is None:
        return Path(reference)
    repository, revision = named
    need("huggingface_hub", purpose=f"{reference} is no folder here, and fetching it from the hub")
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, repo_type=repo_type, allow_patterns=list(patterns)
        )
    except (
        Exception
    ) as error:  # the library raises its own, its HTTP client's and the system's errors
        raise UserError(_why_not(str(reference), repository, error)) from error
    return Path(folder)


def files_on_hub(reference: str | Path) -> list[str]:
    """Names of all files of a hub repository, also of those that are not fetched.

    Empty for folders, and where the hub cannot be asked: a snapshot in the cache does not say what else there is.
    """
    named = hub_id(reference)
    if named is None:
        return []
    need("huggingface_hub", purpose=f"{reference} is no folder here, and fetching it from the hub")
    import huggingface_hub

    try:
        return huggingface_hub.list_repo_files(named[0], revision=named[1])
    except Exception as error:
        # the library raises its own, its HTTP client's and the system's errors; without a network the cache must do
        LOG.info("the files of %s cannot be listed (%s)", named[0], type(error).__name__)
        return []


def _why_not(reference: str, repository: str, error: Exception) -> str:
    kind = type(error).__name__
    start = f"{reference} is no folder here, and the hub's repository {repository!r}"
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError"):
        return f"{start} cannot be had ({kind}): check the spelling, or log in with `hf auth login` if it is private"
    return (
        f"{start} is neither reachable nor in the local cache ({kind}): on a machine with network, run "
        f"`hf download {repository} --include '*.json' '*.safetensors' --local-dir DIR`, copy DIR here and give that"
    )
