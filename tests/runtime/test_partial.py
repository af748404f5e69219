"""What killed processes left half-written is swept; what running ones are at is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vla_rl.config import UserError
from vla_rl.runtime.files import require_writable, whole_file, whole_folder, write_text
from vla_rl.runtime.partial import read_name, sweep, unfinished_path

DAY = 86_400


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left(folder: Path, name: str, age: float = 0.0) -> Path:
    """A folder with a file in it, not changed for `age` seconds."""
    path = folder / name
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text("half")
    then = time.time() - age
    for changed in (path / "inner" / "file", path / "inner", path):
        os.utime(changed, (then, then))
    return path


def test_a_folder_that_another_process_is_writing_is_left_to_it(tmp_path: Path) -> None:
    code = "import sys, time; print('ready', flush=True); time.sleep(1000)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        left(tmp_path, f".demos.{other.pid}@{socket.gethostname()}.partial")
        with (
            pytest.raises(UserError, match=rf"process {other.pid} is writing"),
            whole_folder(tmp_path / "demos"),
        ):
            pass
        with whole_folder(tmp_path / "others"):
            pass
    finally:
        other.kill()
        other.wait()
    with whole_folder(tmp_path / "demos"):  # it is gone, and what it left as well
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demos", "others"]


def test_a_name_tells_whose_it_is() -> None:
    path = unfinished_path(Path("runs/my run.v2"), "partial")
    found = read_name(path.name)
    assert found is not None
    assert (found.name, found.pid, found.kind) == ("my run.v2", os.getpid(), "partial")
    assert read_name(".demos.partial-12") == ("demos", 12, None, "partial")  # of before
    assert read_name(".iteration-000002.7.former") == ("iteration-000002", 7, None, "former")
    for name in ("demos", ".lock", ".cache.tmp", "a.1@h.partial", ".a.x@h.partial", ".git"):
        assert read_name(name) is None


def test_what_a_dead_process_left_is_removed_and_nothing_else(tmp_path: Path, dead: int) -> None:
    host = socket.gethostname()
    gone = [
        left(tmp_path, f".demos.{dead}@{host}.partial"),
        left(tmp_path, ".demos.1@elsewhere.partial", age=2 * DAY),
        left(tmp_path, f".old.partial-{dead}", age=2 * DAY),
        # the number of this process, from a time before it began: containers begin with the same ones
        left(tmp_path, f".demos.{os.getpid()}@{host}.partial", age=DAY),
    ]
    stay = [
        left(tmp_path, f".sft.{os.getpid()}@{host}.partial"),
        left(tmp_path, ".demos.1@elsewhere.partial2"),
        left(tmp_path, ".sft.1@elsewhere.partial"),
        left(tmp_path, f".young.partial-{dead}"),  # perhaps of another machine that shares the disk
        left(tmp_path, "demos"),
    ]
    sweep(tmp_path)
    assert [path.exists() for path in gone] == [False] * len(gone)
    assert [path.exists() for path in stay] == [True] * len(stay)


def test_in_a_folder_of_ones_own_everything_unfinished_goes(tmp_path: Path) -> None:
    for name in (".a.1.partial", ".b.1@elsewhere.partial"):
        left(tmp_path, name)
    (tmp_path / ".index.json.1@elsewhere.tmp").write_text("{")
    left(tmp_path, "c")
    sweep(tmp_path, all_dead=True)
    assert os.listdir(tmp_path) == ["c"]


def test_what_was_being_replaced_gets_its_name_back(tmp_path: Path) -> None:
    left(tmp_path, ".a.1.former")
    left(tmp_path, ".a.1.partial")
    left(tmp_path, ".b.1.former")
    left(tmp_path, "b")
    sweep(tmp_path, all_dead=True)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "a" / "inner" / "file").read_text() == "half"


def test_whoever_writes_next_sweeps(tmp_path: Path, dead: int) -> None:
    name = f".demos.{dead}@{socket.gethostname()}.partial"
    left(tmp_path, name)
    with whole_folder(tmp_path / "other") as folder:
        (folder / "a").write_text("1")
    assert os.listdir(tmp_path) == ["other"]


def test_an_interrupted_write_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_text(path, "old")

    def write() -> None:
        with whole_file(path) as aside:
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["report.html"]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("folder", "file", "it is a folder, expected the name of a file"),
        ("file", "folder", "it is a file, expected a folder or a new name"),
        ("file/inside", "file", "file is no folder; choose another folder"),
        ("file/inside/deeper", "folder", "file is no folder; choose another folder"),
        ("n" * 250, "file", "File name too long; choose a shorter name"),
        ("n" * 300, "folder", "File name too long; choose a shorter name"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(
    tmp_path: Path, name: str, kind: str, words: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=words):
        require_writable(tmp_path / name, kind)  # type: ignore[arg-type]


def test_an_output_that_can_be_written_is_not_made_yet(tmp_path: Path) -> None:
    for name in ("new", "deep/down/new"):
        require_writable(tmp_path / name, "file")
        require_writable(tmp_path / name, "folder")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="give write permission or choose another folder"):
        require_writable(tmp_path / "a" / "b", "folder")
