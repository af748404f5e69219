"""How a folder of adapters names its base, and where that is found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_rl.runtime.bases import base_reference, find_base


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("work/runs/sft/policy", "work/adapter", "models/base", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize("base", ["runs/sft/policy", "../models/base"])
def test_a_folder_is_named_relative_to_the_adapters(place: Path, base: str) -> None:
    """Given relative to the working directory, or by its full path."""
    folder = place / "work" / "adapter"
    for given in (base, str((place / "work" / base).resolve())):
        reference = base_reference(given, folder)
        assert not Path(reference).is_absolute()
        assert place.name not in reference
        assert Path(find_base(reference, folder)) == (place / "work" / base).resolve()


def test_the_reference_holds_before_the_adapters_get_their_name(place: Path) -> None:
    """Folders are written aside and renamed."""
    aside = place / "work" / ".adapter.123.partial"
    reference = base_reference("runs/sft/policy", aside)
    found = find_base(reference, place / "work" / "adapter")
    assert Path(found) == place / "work" / "runs" / "sft" / "policy"


def test_where_only_the_root_is_shared_no_path_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = Path("/adapters-of-a-test")
    assert base_reference(str(place / "models" / "base"), outside) == "base"
    assert base_reference("runs/sft/policy", outside) == "runs/sft/policy"


@pytest.mark.parametrize("named", ["", "owner/name", "owner/name@abc"])
def test_hub_ids_stay(place: Path, named: str) -> None:
    assert base_reference(named, place / "work" / "adapter") == named
    assert find_base(named, place / "work" / "adapter") == named


def test_snapshots_of_the_hubs_cache_are_ids(place: Path) -> None:
    snapshot = place / "hub" / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert base_reference(str(snapshot), place / "work" / "adapter") == "owner/name@abc"
