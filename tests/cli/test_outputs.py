"""Where a command would write is looked at before it works, and a result is shown even if it cannot be written."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from vla_rl.cli import main
from vla_rl.cli.options import say
from vla_rl.config import UserError
from vla_rl.envs.known_answers import make_chain_envs
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.recipes import evaluate
from vla_rl.runtime.progress import note

OLD = Path(__file__).parent.parent / "fixtures" / "old_runs"
# the inputs are not there: whoever looks at them first says so, instead of naming the output
MISSING = "no/such/input"
COMMANDS = {
    "demos --episodes-per-task 1 --out": "file",
    f"convert {MISSING} --out": "file",
    f"sft --dataset {MISSING} --out": "file",
    f"train metaworld-mt1 --policy.checkpoint {MISSING} --run.name run --run.root": "file",
    f"eval {MISSING} --json": "folder.json",
    f"eval {MISSING} --videos 1 --videos-out": "file",
    f"eval {MISSING} --best-of 2 --chooser random --json": "folder.json",
    f"reward collect {MISSING} --out": "file",
    f"reward label {MISSING} --out": "file",
    f"reward train --datasets {MISSING} --out": "file",
    f"reward eval {MISSING} --out": "file",
    f"reward score {MISSING} {MISSING} --out": "folder.png",
    f"test-time {MISSING} --choosers random --out": "file",
    f"learning-curve {MISSING} --out": "folder.png",
    f"ablate --checkpoint {MISSING} --out": "file",
    f"export {MISSING} --out": "file",
    f"report {MISSING} --out": "folder.html",
    f"film {MISSING} --out": "folder.gif",
    "quickstart --out": "file",
}


@pytest.fixture
def obstacles(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name in ("folder.png", "folder.gif", "folder.json", "folder.html"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(("words", "obstacle"), COMMANDS.items())
def test_an_output_in_the_way_is_named_before_anything_is_read(
    words: str, obstacle: str, obstacles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = obstacles / obstacle
    assert main([*words.split(), str(target)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(target) in line
    assert MISSING not in line
    assert (obstacles / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["picture.xyz", "picture"])
@pytest.mark.parametrize(
    "words", [f"learning-curve {MISSING}", f"reward score {MISSING} {MISSING}"]
)
def test_a_picture_of_an_unknown_kind_is_refused_before_anything_is_read(
    words: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--out", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"ends? in \.png", line)


@pytest.fixture
def play_on_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        evaluate, "make_vector_env", lambda config: SerialVectorEnv(config, make_chain_envs)
    )


PLAY = ("--suite", "mt1:drawer-close", "--episodes-per-task", "2", "--horizon", "3")


@pytest.mark.usefixtures("play_on_the_chain")
def test_folders_above_the_output_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "deep" / "down" / "result.json"
    assert main(["eval", str(OLD / "train"), *PLAY, "--json", str(result)]) == 0
    assert json.loads(result.read_text())["overall"]["episodes"] == 2
    assert "/2 " in capsys.readouterr().out


@pytest.mark.usefixtures("play_on_the_chain")
def test_the_table_is_shown_although_the_disk_has_become_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, _: object) -> None:
        raise UserError(f"cannot write {path}: No space left on device; free some space")

    monkeypatch.setattr(evaluate, "write_json", full)
    result = tmp_path / "result.json"
    assert main(["eval", str(OLD / "train"), *PLAY, "--json", str(result)]) == 2
    said = capsys.readouterr()
    assert "/2 " in said.out
    assert "No space left on device" in said.err


def test_brackets_in_a_name_are_no_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rich takes [/b] for the end of something."""
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(OLD / "sft-stopped", tmp_path / "br[/b]")
    shutil.copytree(OLD / "sft", tmp_path / "[red]sft")
    assert main(["eval", "br[/b]", *PLAY]) == 2
    assert "br[/b] is a fine-tuning that is not finished" in capsys.readouterr().err
    assert main(["report", "br[/b]", "--out", "[bold]out/re[/b]port.html"]) == 0
    assert "Report: [bold]out/re[/b]port.html" in capsys.readouterr().out
    assert main(["export", "[red]sft", "--out", "ex[/b]port"]) == 0
    assert "Exported: ex[/b]port" in capsys.readouterr().out
    assert run.is_dir()


@pytest.mark.parametrize(
    "words", ["eval {run} --json {run}/run.json", "report {run} --out {run}/run.json"]
)
def test_what_a_run_says_of_itself_is_not_replaced(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(OLD / "train", tmp_path / "run")
    before = (run / "run.json").read_bytes()
    assert main(words.format(run=run).split()) == 2
    assert "run.json" in capsys.readouterr().err
    assert (run / "run.json").read_bytes() == before


def test_what_is_no_file_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    assert main(["eval", MISSING, "--json", str(pipe)]) == 2
    assert "a device or a pipe" in capsys.readouterr().err
    assert pipe.is_fifo()


def test_a_terminal_obeys_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    note("a \x1b[31mred\x1b[0m task\nof two lines")
    say("\x1b]0;title\x07")
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "task\nof two lines" in shown.err.replace("\r", "")
