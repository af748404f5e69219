"""Trackers are copies: each iteration once, however often the run is resumed, and never the end of a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from vla_rl.config import ConfigError, RunConfig, TrainConfig, UserError
from vla_rl.config.run import tracker_names
from vla_rl.config.serialize import from_json
from vla_rl.runtime.run_folder import Run
from vla_rl.runtime.trackers import copies
from vla_rl.runtime.trackers.tracker import recall, remember

EVALUATION = {
    "sampling": {"mode": "greedy"},
    "overall": {"success_rate": 0.5, "interval": [0.25, 0.75]},
    "tasks": {"a:b": {"success_rate": 0.5, "interval": [0.25, 0.75]}},
}


class Written:
    """A tracker in a file of the run folder, which fails on demand."""

    forgets = False
    fails_at: int | None = None

    def __init__(self, folder: Path) -> None:
        self.begun = "id" in recall(folder, "trackio")
        remember(folder, "trackio", id="x")
        self.file = folder / "written.jsonl"

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        if iteration == type(self).fails_at:
            raise ConnectionError("the network is away\nwith a second line")
        with self.file.open("a") as file:
            file.write(json.dumps([iteration, dict(metrics)]) + "\n")

    def attach(self, iteration: int, name: str, files: Sequence[Path]) -> None:
        pass

    def rewind(self, iteration: int) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[Written]:
    monkeypatch.setattr(copies, "need", lambda *names, purpose: None)
    monkeypatch.setattr(copies, "_class_of", lambda name: Written)
    monkeypatch.setattr(Written, "fails_at", None)
    return Written


def seen(root: Path) -> list[int]:
    return [json.loads(line)[0] for line in (root / "first/written.jsonl").read_text().splitlines()]


def play(run: Run, start: int, stop: int) -> None:
    for iteration in range(start, stop):
        run.log(iteration, {"loss": 0.5, "nan": float("nan")})


def test_repeated_iterations_and_evaluations_arrive_once(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", TrainConfig(), [], trackers=["trackio"]) as run:
        play(run, 1, 6)
        file = run.eval_folder / "iteration-000005.json"
        file.write_text(json.dumps(EVALUATION))
        run.log_evaluation(file)
    with Run.open(tmp_path / "first", trackers=["trackio"]) as run:
        run.rewind(3)
        play(run, 4, 6)
        run.log_evaluation(file)
        play(run, 6, 8)
    assert seen(tmp_path) == [1, 2, 3, 4, 5, 5, 6, 7]
    rows = [json.loads(x)[1] for x in (tmp_path / "first/written.jsonl").read_text().splitlines()]
    assert rows[0] == {"loss": 0.5}  # what is not finite has no place in a tracker
    assert rows[5]["eval/greedy/low"] == 0.25
    assert rows[5]["eval/greedy/tasks/a-b/success_rate"] == 0.5


def test_one_that_fails_is_said_once_and_catches_up_when_the_run_is_resumed(
    tmp_path: Path, tracker: type[Written], caplog: pytest.LogCaptureFixture
) -> None:
    tracker.fails_at = 3
    caplog.set_level(logging.WARNING, logger="vla_rl")
    with Run.create(tmp_path, "first", TrainConfig(), [], trackers=["trackio"]) as run:
        play(run, 1, 6)
    assert seen(tmp_path) == [1, 2]
    (said,) = [r.message for r in caplog.records if "failed" in r.message]
    assert "the network is away" in said
    assert "second line" not in said
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 5
    tracker.fails_at = None
    with Run.open(tmp_path / "first", trackers=["trackio"]) as run:
        run.rewind(4)
        play(run, 5, 7)
    assert seen(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_one_that_is_added_later_gets_what_was_before(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", TrainConfig(), []) as run:
        play(run, 1, 4)
    for stop in (6, 8):
        with Run.open(tmp_path / "first", trackers=["trackio"]) as run:
            run.rewind(stop - 3)
            play(run, stop - 2, stop)
    assert seen(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


def test_a_missing_package_is_said_before_there_is_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("vla_rl.runtime.extras.installed", lambda module: module != "mlflow")
    with pytest.raises(UserError, match=r"run.trackers needs the package mlflow.*vla-rl\[mlflow\]"):
        Run.create(tmp_path, "first", TrainConfig(), [], trackers=["mlflow"])


def test_names_are_checked() -> None:
    assert tracker_names("wandb, mlflow,wandb") == ("wandb", "mlflow")
    assert tracker_names("none") == ()
    with pytest.raises(ConfigError, match=r"run.trackers: expected .*'mlfow'.*'mlflow'"):
        RunConfig(trackers="mlfow")
    with pytest.raises(ConfigError, match="none stands alone"):
        RunConfig(trackers="none,wandb")


@pytest.mark.parametrize(
    ("saved", "trackers"),
    [
        ({}, "auto"),
        ({"tensorboard": True, "wandb": False}, "auto"),
        ({"tensorboard": False, "wandb": False}, "none"),
        ({"tensorboard": True, "wandb": True}, "auto,wandb"),
        ({"tensorboard": False, "wandb": True}, "wandb"),
    ],
)
def test_the_switches_of_before_are_read(saved: dict[str, Any], trackers: str) -> None:
    assert from_json(RunConfig, saved).trackers == trackers


def test_the_switches_of_before_work_on_the_command_line_and_are_explained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vla_rl.cli.old_values import old_switches, without_switches

    (old,) = old_switches(TrainConfig, TrainConfig(), "", False)
    words = ["--run.no-tensorboard", "--run.name", "x", "--run.wandb"]
    assert without_switches(words, old, "train") == ["--run.name", "x", "--run.trackers", "wandb"]
    assert "--run.no-tensorboard --run.wandb is --run.trackers wandb now" in capsys.readouterr().err
    words = ["--run.trackers=mlflow", "--run.no_wandb"]
    assert without_switches(words, old, "train") == ["--run.trackers", "mlflow"]
    assert without_switches(["--run.name", "x"], old, "train") == ["--run.name", "x"]
