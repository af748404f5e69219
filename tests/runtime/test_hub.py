"""Hub ids and folders: what is one, what the cache gives, what is said without a network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vla_rl.config import UserError
from vla_rl.policies.openvla.loading import find_source
from vla_rl.runtime.hub import checkpoint_folder, files_on_hub, hub_id

COMMIT = "31f090d05236101ebfc381b61c674dd4746d4ce0"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("openvla/openvla-7b", ("openvla/openvla-7b", None)),
        (
            "openvla/openvla-7b-finetuned-libero-10",
            ("openvla/openvla-7b-finetuned-libero-10", None),
        ),
        ("openvla/openvla-7b@v1.0", ("openvla/openvla-7b", "v1.0")),
        ("openvla-7b", None),
        ("runs/sft", None),
        ("runs/sft/policy", None),
        ("./openvla/openvla-7b", None),
        ("../models/openvla", None),
        ("a folder/with spaces", None),
        ("", None),
    ],
)
def test_what_a_hub_id_is(reference, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id(reference) == expected


def test_folders_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("models/mine") is not None
    (tmp_path / "models").mkdir()
    assert hub_id("models/mine") is None, "a folder that is missing below one that is there"
    (tmp_path / "models" / "mine").mkdir()
    assert checkpoint_folder("models/mine") == Path("models/mine")
    assert checkpoint_folder(tmp_path / "nothing") == tmp_path / "nothing"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub cache with one repository in it, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "hub" / "models--openvla--openvla-7b"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_the_local_cache_is_used(cache):
    assert checkpoint_folder("openvla/openvla-7b") == cache
    assert checkpoint_folder(f"openvla/openvla-7b@{COMMIT}") == cache


def test_what_is_not_there_says_what_to_do(cache):
    with pytest.raises(UserError, match="neither reachable nor in the local cache") as told:
        checkpoint_folder("openvla/openvla-7b-finetuned-libero-goal")
    assert "hf download openvla/openvla-7b-finetuned-libero-goal" in str(told.value)
    assert "give that" in str(told.value)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs the package huggingface-hub: pip install 'vla-rl"):
        checkpoint_folder("openvla/openvla-7b")


def test_only_data_is_fetched(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoint_folder("owner/name@abc") == tmp_path
    assert asked == {
        "repository": "owner/name",
        "revision": "abc",
        "repo_type": "model",
        "allow_patterns": [
            "*.json",
            "*.safetensors",
            "*.jinja",
            "merges.txt",
            "vocab.txt",
            "*.model",
        ],
    }


def test_a_private_or_misspelt_repository(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)

    class RepositoryNotFoundError(Exception):
        pass

    def download(repository, **options):
        raise RepositoryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(
        UserError, match=r"cannot be had \(RepositoryNotFoundError\): check the spelling"
    ):
        checkpoint_folder("owner/name")


def test_files_that_are_not_fetched_are_known_by_name(tmp_path, monkeypatch):
    """A head in a file of its own is never downloaded, and its repository must not pass for a whole policy."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    names = ["config.json", "action_head--50000_checkpoint.pt"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: names)
    with pytest.raises(UserError, match=r"action_head--50000_checkpoint\.pt.*L1 or diffusion head"):
        find_source("owner/name", kind="openvla-oft")

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    assert files_on_hub("owner/name") == files_on_hub(tmp_path) == []
    with pytest.raises(UserError, match=r"No config\.json"):  # the cache alone is looked at
        find_source("owner/name", kind="openvla-oft")
