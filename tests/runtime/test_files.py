"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vla_rl.config import UserError
from vla_rl.runtime.files import whole_folder


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "policy"
    with whole_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("1")
        assert not target.exists()
    assert (target / "inner" / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["policy"]
    with whole_folder(target) as folder:  # in the place of another
        (folder / "b").write_text("2")
    assert os.listdir(target) == ["b"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("other")])
def test_after_an_error_the_old_folder_is_as_it_was(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "policy"
    target.mkdir()
    (target / "a").write_text("old")
    expected = UserError if isinstance(error, OSError) else RuntimeError

    def write() -> None:
        with whole_folder(target) as folder:
            (folder / "a").write_text("new")
            raise error

    with pytest.raises(expected, match="free some space" if expected is UserError else "other"):
        write()
    assert (target / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["policy"]


def test_a_place_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write .*file/policy"),
        whole_folder(tmp_path / "file" / "policy"),
    ):
        pass
