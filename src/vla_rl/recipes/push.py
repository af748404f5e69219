"""Push a policy, a reward model or a dataset to the Hugging Face hub, with a card written from its run.

vla-rl push runs/first owner/name                      sends it; a new repository is private
vla-rl push runs/first owner/name --to-folder out      writes the same files here, without a network

Only what loading reads is sent: weights, settings and tokenizer, or a dataset's tables and pictures. Optimizer states,
logs, caches and hidden files never are, and paths of this machine are taken out.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vla_rl.config import UserError
from vla_rl.config.push import PushConfig
from vla_rl.report.cards import card
from vla_rl.rewards.process.loading import reward_model_folder
from vla_rl.rewards.process.model import description_file
from vla_rl.runtime.extras import need
from vla_rl.runtime.files import require_writable, whole_folder
from vla_rl.runtime.hub import DATASET_PATTERNS, PATTERNS
from vla_rl.runtime.locate import locate_policy
from vla_rl.runtime.progress import note
from vla_rl.training.epoch_state import require_unused

Kind = Literal["policy", "reward model", "dataset"]
CARD = "README.md"
_NAMES_A_MODEL = ("base_model_name_or_path", "backbone", "base")
"""Keys without which the files do not load: a path there cannot be taken out."""
_VOCABULARY = ("tokenizer.json", "vocab.json", "added_tokens.json")
"""Pieces of words, some of which look like paths: these stay as they are."""
_ROOTS = ("home", "root", "Users", "mnt", "media", "data", "scratch", "tmp", "var", "opt", "srv")


class Source(NamedTuple):
    """What is pushed."""

    kind: Kind
    folder: Path
    """With the files."""
    given: Path
    """What the user named: the run, where there is one."""


def push(config: PushConfig) -> str:
    """Send the files, or write them to `config.to_folder`; returns the address or the folder.

    Raises UserError for a source that is none of the three, for files that name a model by a path of this machine, for
    a folder that is in use, and where the hub refuses or cannot be reached. Nothing is half there then: the hub takes
    all files in one commit.
    """
    need("huggingface_hub", purpose="push")
    source = find_source(Path(config.source))
    files = dict(cleaned_files(source, config.base))
    files[CARD] = card(
        source.kind, source.folder, source.given, config.repository, config.license
    ).encode()
    if config.to_folder:
        return str(_write(files, Path(config.to_folder)))
    return _send(files, source.kind, config)


def find_source(given: Path) -> Source:
    """What `given` is. UserError where it is no policy, reward model or dataset."""
    if (given / "meta" / "info.json").is_file():
        from vla_rl.data.lerobot import LeRobotReader

        LeRobotReader(given)  # refuses a damaged one
        return Source("dataset", given, given)
    model = reward_model_folder(given)
    if description_file(model) is not None:
        return Source("reward model", model, given)
    folder, _ = locate_policy(given)
    if not folder.is_dir():
        raise UserError(
            f"{given} does not exist: expected a run, a policy, a reward model or a dataset"
        )
    return Source("policy", folder, given)


def cleaned_files(source: Source, base: str = "") -> Iterator[tuple[str, Path | bytes]]:
    """Name in the repository -> the file, or its new content where a path of this machine was taken out of it."""
    patterns = DATASET_PATTERNS if source.kind == "dataset" else PATTERNS
    for path in sorted(source.folder.rglob("*")):
        name = path.relative_to(source.folder)
        if not path.is_file() or any(part.startswith((".", "__")) for part in name.parts):
            continue
        if not any(name.match(pattern) for pattern in patterns):
            continue
        if not path.resolve().is_relative_to(source.folder.resolve()):
            raise UserError(
                f"{path} is a link to a file outside {source.folder}: copy that file there, or remove the link"
            )
        settings = path.suffix == ".json" and path.name not in _VOCABULARY
        yield name.as_posix(), _without_paths(path, base) if settings else path


def _without_paths(path: Path, base: str) -> Path | bytes:
    """The file itself where it names no path of this machine."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(
            f"{path} is damaged: expected JSON. Copy the folder again before it is pushed"
        ) from None
    cleaned = _clean(content, path, base)
    return path if cleaned == content else (json.dumps(cleaned, indent=2) + "\n").encode()


def _clean(value: Any, path: Path, base: str, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _clean(inner, path, base, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner, path, base, key) for inner in value]
    if not isinstance(value, str) or not is_local_path(value):
        return value
    if key not in _NAMES_A_MODEL:
        return Path(value).name
    if base:
        return base
    raise UserError(
        f"{path} names the model it belongs to by a path of this machine, {key} = {value!r}, which nobody else has: "
        "give its hub id with --base owner/name, or push what `vla-rl export` merges"
    )


def is_local_path(text: str) -> bool:
    """Whether a text names a place on a machine: below the home folder, or below one of a machine's usual folders."""
    if text.startswith(("~/", "file:///", f"{Path.home()}/")):
        return True
    first = text.split("/")[1] if text.startswith("/") and text.count("/") > 1 else ""
    return first in _ROOTS or (first.isidentifier() and Path("/", first).is_dir())


def _write(files: Mapping[str, Path | bytes], folder: Path) -> Path:
    out = require_writable(folder, "folder")
    require_unused(out)
    with whole_folder(out) as aside:
        for name, content in files.items():
            target = aside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                shutil.copyfile(content, target)
    return out


def _send(files: Mapping[str, Path | bytes], kind: Kind, config: PushConfig) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise UserError(
            "HF_HUB_OFFLINE is set, so nothing is sent: unset it, or write the files with --to-folder DIR"
        )
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    repository, repo_type = config.repository, "dataset" if kind == "dataset" else "model"
    note(f"push: {len(files)} files of a {kind} to {repository}")
    additions = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    try:
        hub.create_repo(repository, repo_type=repo_type, private=not config.public, exist_ok=True)
        done = hub.create_commit(
            repository,
            operations=additions,
            commit_message=f"A {kind} of VLA-RL",
            repo_type=repo_type,
        )
    except Exception as error:  # the library raises its own, its HTTP client's and the system's
        words = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"the hub did not take {repository} ({type(error).__name__}: {words}): log in with `hf auth login` to an "
            "account that may write there, or write the files with --to-folder DIR and send them later with "
            f"`hf upload {repository} DIR . --repo-type {repo_type}`"
        ) from error
    return str(done.repo_url)
