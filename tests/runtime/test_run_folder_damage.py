"""Run folders that are damaged, half made, of another version, or wanted by two."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vla_rl.config import ScheduleConfig, TrainConfig, UserError
from vla_rl.runtime.metrics import read_metrics
from vla_rl.runtime.run_folder import Run, read_config

CONFIG = TrainConfig(schedule=ScheduleConfig(iterations=7))


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def saved(run: Run) -> list[str]:
    return sorted(p.name for p in (run.folder / "checkpoints").iterdir() if p.is_dir())


def save(run: Run, iteration: int, score: float | None = None) -> Path:
    return run.save(iteration, {"x": torch.tensor(float(iteration))}, {}, score=score)


# -- what cannot be read


def spoil(folder: Path, how: str) -> None:
    """Make a checkpoint unreadable: damaged, or written by another version."""
    manifest = folder / "manifest.json"
    if how == "foreign":
        manifest.write_text(
            manifest.read_text().replace("vla-rl checkpoint 1", "vla-rl checkpoint 9")
        )
    elif how == "manifest":
        manifest.write_text('{"format": "vla-rl checkpoint 1", "files": {"state.json": 3}}')
    elif how == "outside":
        manifest.write_text(
            '{"format": "vla-rl checkpoint 1", "files": {"../a": {"bytes": 1, "sha256": ""}}}'
        )
    elif how == "missing":
        manifest.unlink()
    else:
        (folder / "state.json").write_text("{}")


HOW = ["damaged", "manifest", "missing", "outside", "foreign"]


@pytest.mark.parametrize("how", HOW)
def test_a_run_none_of_whose_checkpoints_can_be_read_is_not_begun_anew(
    tmp_path: Path, how: str
) -> None:
    with Run.create(tmp_path, "first", CONFIG, []) as run:
        for iteration in (10, 20):
            run.log(iteration, {})
            spoil(save(run, iteration), how)
    before = saved(run)
    with Run.open(run.folder) as run, pytest.raises(UserError) as refused:
        run.latest()
    assert saved(run) == before
    assert len(lines(run)) == 2
    words = "another version" if how == "foreign" else "move that folder away to start over"
    assert words in str(refused.value)


def test_a_newer_checkpoint_of_another_version_is_not_overtaken(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", CONFIG, [], keep=3) as run:
        save(run, 10)
        spoil(save(run, 20), "foreign")
        with pytest.raises(
            UserError, match=r"iteration-000020.*'vla-rl checkpoint 9'.*that version"
        ):
            run.latest()


def test_a_damaged_newer_checkpoint_is_set_aside_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Run.create(tmp_path, "first", CONFIG, [], keep=2) as run:
        save(run, 10)
        spoil(save(run, 20), "damaged")
        latest = run.latest()
        assert latest is not None
        assert latest.name == "iteration-000010"
        with caplog.at_level(logging.WARNING, logger="vla_rl"):
            run.rewind(10)
        assert saved(run) == ["iteration-000010", "unreadable-iteration-000020"]
        assert "state.json has 2 bytes" in caplog.text
        assert "set aside as unreadable-iteration-000020" in caplog.text
        spoil(save(run, 20), "damaged")  # and once more
        run.rewind(10)
        for iteration in (20, 30, 40):
            save(run, iteration)
        assert saved(run) == [
            "iteration-000030",
            "iteration-000040",
            "unreadable-iteration-000020",
            "unreadable-iteration-000020-2",
        ]


def test_saving_never_deletes_what_was_just_saved_nor_what_comes_later(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", CONFIG, [], keep=1) as run:
        spoil(save(run, 90), "damaged")
        for iteration in (1, 2):
            save(run, iteration)
        assert saved(run) == ["iteration-000002", "iteration-000090"]


# -- whole or absent


WATCHED = """
import sys, threading
from pathlib import Path
from vla_rl.config import TrainConfig
from vla_rl.runtime.run_folder import Run
for number in range(200):
    Run.create(sys.argv[1], f"run-{number}", TrainConfig(), []).close()
    print(number, flush=True)
"""


def test_a_run_folder_is_whole_whenever_it_is_seen(tmp_path: Path) -> None:
    """Killed at any moment: each folder holds both files, and nothing half-written stays for the next."""
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 5:
            process.kill()
    process.wait()
    made = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert len(made) >= 6
    for folder in made:
        assert read_config(folder, TrainConfig) == TrainConfig()
        assert json.loads((folder / "run.json").read_text())["config_type"] == "TrainConfig"
    Run.create(tmp_path, "next", CONFIG, []).close()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_run_that_an_earlier_version_left_without_its_run_json_goes_on(tmp_path: Path) -> None:
    """It was killed between its two files."""
    Run.create(tmp_path, "first", CONFIG, []).close()
    (tmp_path / "first" / "run.json").unlink()
    with Run.open(tmp_path / "first", ["again"]) as run:
        assert run.read_config(TrainConfig) == CONFIG
    assert json.loads((run.folder / "run.json").read_text())["resumed"][0]["command"] == ["again"]


def test_a_folder_that_is_a_link_or_empty_is_filled(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "runs" / "empty").mkdir()
    for name in ("linked", "empty"):
        with Run.create(tmp_path / "runs", name, CONFIG, []) as run:
            run.log(1, {})
            assert run.read_config(TrainConfig) == CONFIG
    assert (tmp_path / "runs" / "linked").is_symlink()
    assert (tmp_path / "disk" / "metrics.jsonl").is_file()


def test_two_that_begin_the_same_run_do_not_share_it(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", CONFIG, []):
        with pytest.raises(UserError, match="is in use by process"):
            Run.create(tmp_path, "first", CONFIG, [])
        assert read_config(tmp_path / "first", TrainConfig) == CONFIG


@pytest.mark.parametrize("damage", ['{"resumed": 3}', "[]", "", '{"resumed": []', "\x00\x01"])
def test_a_damaged_run_json_is_named_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    Run.create(tmp_path, "first", CONFIG, []).close()
    file = tmp_path / "first" / "run.json"
    file.write_text(damage)
    with pytest.raises(UserError, match=r"run\.json"):
        Run.open(tmp_path / "first")
    assert file.read_text() == damage
    file.write_text('{"config_type": "TrainConfig"}')
    Run.open(tmp_path / "first").close()  # it was let go


@pytest.mark.parametrize(
    "entry",
    ['{"iteration": "a", "wall_seconds": 1}', '{"iteration": 1, "wall_seconds": null}', "3"],
)
def test_metrics_of_another_kind_are_named(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"iteration": 1, "wall_seconds": 1}\n'
    path.write_text(f"{good}{entry}\n{good}{good}")
    with pytest.raises(UserError, match=r"damaged in line 2"):
        read_metrics(path)
