"""The run folder: what is written, what a resumed run finds, and who may use it."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_rl.config import RunConfig, ScheduleConfig, TrainConfig, UserError
from vla_rl.runtime.checkpoint import read_checkpoint
from vla_rl.runtime.metrics import read_metrics
from vla_rl.runtime.run_folder import Run, read_config

CONFIG = TrainConfig(schedule=ScheduleConfig(iterations=7))


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def saved(run: Run) -> list[str]:
    return sorted(p.name for p in (run.folder / "checkpoints").iterdir() if p.is_dir())


def save(run: Run, iteration: int, score: float | None = None) -> Path:
    return run.save(iteration, {"x": torch.tensor(float(iteration))}, {}, score=score)


def test_a_new_run_writes_its_configuration_and_where_it_came_from(tmp_path: Path) -> None:
    with Run.create(tmp_path / "deep" / "runs", "first", CONFIG, ["vla-rl", "train"]) as run:
        assert run.read_config(TrainConfig) == CONFIG
        described = json.loads((run.folder / "run.json").read_text())
    assert run.folder == tmp_path / "deep" / "runs" / "first"
    assert described["config_type"] == "TrainConfig"
    assert described["command"] == ["vla-rl", "train"]
    assert described["versions"]["torch"] == torch.__version__
    assert described["versions"]["numpy"] == np.__version__
    assert described["machine"]["cpus"] >= 1


def test_an_existing_run_is_not_written_over(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", CONFIG, []) as run:
        run.log(1, {})
    with pytest.raises(
        UserError, match=r"holds a run: .*--resume .*first`, or choose another name"
    ):
        Run.create(tmp_path, "first", CONFIG, [])
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path, "empty", CONFIG, []).close()
    with pytest.raises(UserError, match="must be a plain folder name"):
        Run.create(tmp_path, "a/b", CONFIG, [])


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/iteration-000001/state.json"])
def test_nothing_of_the_users_is_taken_over(tmp_path: Path, name: str) -> None:
    file = tmp_path / "first" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(UserError, match="choose another name"):
        Run.create(tmp_path, "first", CONFIG, [])
    assert file.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*choose another folder"):
        Run.create(tmp_path / "file", "first", CONFIG, [])


def test_a_run_that_could_not_start_can_be_started_again(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"run.trackers needs the package wandb: pip install 'vla-rl\[wandb\]'"
    ):
        Run.create(tmp_path, "first", CONFIG, [], trackers=["wandb"])
    Run.create(
        tmp_path, "first", TrainConfig(), []
    ).close()  # and stopped before its first iteration
    with Run.create(tmp_path, "first", CONFIG, []) as run:
        assert run.read_config(TrainConfig) == CONFIG


def test_a_mistake_found_at_the_start_leaves_no_folder(tmp_path: Path) -> None:
    def fail(run: Run, error: Exception) -> None:
        with pytest.raises(type(error)), run:
            raise error

    fail(Run.create(tmp_path, "mistaken", CONFIG, []), UserError("no such policy"))
    assert not (tmp_path / "mistaken").exists()
    fail(Run.create(tmp_path, "broken", CONFIG, []), ValueError("a defect of ours"))
    assert (tmp_path / "broken/config.json").exists(), "who looks into it needs to see it"
    fail(Run.open(tmp_path / "broken"), UserError("no such policy"))
    assert (tmp_path / "broken/config.json").exists(), "it was there before"
    begun = Run.create(tmp_path, "begun", CONFIG, [])
    begun.log(1, {"loss": 0.5})
    fail(begun, UserError("the disk is full"))
    assert (tmp_path / "begun/metrics.jsonl").read_text()


def test_metrics_are_one_json_object_a_line_with_null_for_what_is_not_finite(
    tmp_path: Path,
) -> None:
    with Run.create(tmp_path, "first", CONFIG, []) as run:
        run.log(1, {"loss": 0.5, "nan": float("nan"), "inf": float("-inf")})
        run.log(2, {"loss": np.float32(0.25), "n": 3, "t": torch.tensor(2.0)})  # type: ignore[dict-item]
        got = lines(run)  # before closing: every line is on the disk at once
    seconds = [line.pop("wall_seconds") for line in got]
    assert got == [
        {"iteration": 1, "loss": 0.5, "nan": None, "inf": None},
        {"iteration": 2, "loss": 0.25, "n": 3, "t": 2.0},
    ]
    assert 0 <= seconds[0] <= seconds[1]


def test_a_failing_tensorboard_is_dropped_with_a_warning_and_the_metrics_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event file is taken away, as a full disk or somebody tidying up would."""
    monkeypatch.setattr(
        threading, "excepthook", lambda args: None
    )  # TensorBoard's thread dies of it
    with Run.create(tmp_path, "first", CONFIG, [], trackers=["tensorboard"]) as run:
        run.log(1, {"loss": 0.5})
        shutil.rmtree(run.folder / "tensorboard")
        for iteration in range(2, 8):  # its writer runs in a thread: it notices a little later
            run.log(iteration, {"loss": 0.5})
    assert [line["iteration"] for line in lines(run)] == list(range(1, 8))
    assert [r.message for r in caplog.records if "TensorBoard failed" in r.message]


def test_rewind_forgets_what_came_later_and_a_half_written_line(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", CONFIG, [], keep=3) as run:
        for iteration in range(1, 6):
            run.log(iteration, {"loss": 1.0 / iteration})
        for iteration in (2, 3, 5):
            save(run, iteration)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 6, "wall_sec')
    assert [entry["iteration"] for entry in read_metrics(run.folder / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
        5,
    ]
    with Run.open(run.folder, ["again"]) as run:
        assert len(lines(run)) == 5
        run.rewind(2)
        assert [line["iteration"] for line in lines(run)] == [1, 2]
        assert saved(run) == ["iteration-000002"]
        run.log(3, {"loss": 9.0})
        assert [line["iteration"] for line in lines(run)] == [1, 2, 3]
    assert json.loads((run.folder / "run.json").read_text())["resumed"][0]["command"] == ["again"]


def test_limits_changed_on_resuming_stay_changed(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", CONFIG, []) as run:
        run.log(1, {})
    longer = replace(CONFIG, schedule=ScheduleConfig(iterations=9))
    with Run.open(run.folder, ["longer"], longer):
        pass
    with Run.open(run.folder, ["again"]) as run:
        assert run.read_config(TrainConfig) == longer


def test_wall_seconds_go_on_over_sittings(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", CONFIG, []) as run:
        run.log(1, {})
    path = run.folder / "metrics.jsonl"
    path.write_text(json.dumps({"iteration": 1, "wall_seconds": 1000.0}) + "\n")
    with Run.open(run.folder) as run:
        run.log(2, {})
        assert 1000 <= lines(run)[1]["wall_seconds"] < 1100
        assert 1000 <= run.wall_seconds < 1100


def test_a_line_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"iteration": 1, "wall_seconds": 1}\n'
    path.write_text(good + "garbage\n" + good + good)
    with pytest.raises(UserError, match=r"damaged in line 2"):
        read_metrics(path)


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    scores = {1: 0.2, 2: 0.7, 3: 0.7, 4: 0.1, 5: None, 6: float("nan"), 7: 0.3}
    with Run.create(tmp_path, "first", CONFIG, [], keep=2) as run:
        assert run.latest() is None
        assert run.best() is None
        for iteration, score in scores.items():
            save(run, iteration, score)
        assert saved(run) == ["iteration-000003", "iteration-000006", "iteration-000007"]
        index = json.loads((run.folder / "checkpoints" / "index.json").read_text())
        assert index["best"] == 3
        assert [(e["iteration"], e["score"]) for e in index["checkpoints"]] == [
            (3, 0.7),
            (6, None),
            (7, 0.3),
        ]
        latest, best = run.latest(), run.best()
    assert latest is not None
    assert best is not None
    assert latest.name == "iteration-000007"
    assert best.name == "iteration-000003"
    checkpoint = read_checkpoint(latest)
    assert checkpoint.state == {"iteration": 7}
    assert float(checkpoint.tensors["x"]) == 7.0


def test_latest_falls_back_to_the_newest_whole_one_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Run.create(tmp_path, "first", CONFIG, [], keep=3) as run:
        for iteration in (1, 2, 3):
            save(run, iteration, score=float(iteration))
        (run.folder / "checkpoints" / "iteration-000003" / "state.json").write_text("{}")
        with caplog.at_level(logging.WARNING, logger="vla_rl"):
            latest, best = run.latest(), run.best()
        assert latest is not None
        assert latest.name == "iteration-000002"
        assert best == latest
        assert "iteration-000003 is damaged: state.json has 2 bytes" in caplog.text
        run.rewind(2)
        save(run, 3, score=0.0)
        assert run.latest() == run.folder / "checkpoints" / "iteration-000003"


def test_a_lost_index_costs_the_scores_only(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", CONFIG, []) as run:
        save(run, 1, score=0.9)
        (run.folder / "checkpoints" / "index.json").write_text("{")
        assert run.best() is None
        assert run.latest() is not None
        save(run, 2, score=0.1)
        assert run.best() == run.folder / "checkpoints" / "iteration-000002"


def test_opening_removes_what_a_killed_save_left(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", CONFIG, []) as run:
        save(run, 1)
    leftover = run.folder / "checkpoints" / ".iteration-000002.1.partial"
    leftover.mkdir()
    with Run.open(run.folder):
        assert not leftover.exists()


def test_a_run_folder_that_is_none_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    Run.create(tmp_path, "first", CONFIG, []).close()
    with pytest.raises(UserError, match=r"no run folder at .*frist. Did you mean 'first'\?"):
        Run.open(tmp_path / "frist")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        read_config(tmp_path, TrainConfig)
    with pytest.raises(UserError, match="is a run of TrainConfig, expected one of RunConfig"):
        read_config(tmp_path / "first", RunConfig)
    (tmp_path / "first" / "config.json").write_text('{"ppo": {"gama": 1}}')
    with pytest.raises(UserError, match=r"ppo.gama: no such field. Did you mean 'gamma'"):
        read_config(tmp_path / "first", TrainConfig)


HOLD = """
import sys, time
from vla_rl.config import TrainConfig
from vla_rl.runtime.run_folder import Run
run = Run.create(sys.argv[1], "first", TrainConfig(), [])
print("held", flush=True)
time.sleep(3600)
"""


def test_one_process_at_a_time_and_a_killed_one_counts_no_more(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"in use by process {holder.pid}"):
            Run.open(tmp_path / "first")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with Run.open(tmp_path / "first") as run:
        run.log(1, {"a": 1.0})


SAVE_FOR_EVER = """
import sys
import threading
from pathlib import Path
import torch
from vla_rl.runtime.run_folder import Run
run = Run.open(sys.argv[1])
done = int(sys.argv[2])
run.rewind(done)
while True:
    done += 1
    run.log(done, {"x": 1.0})
    run.save(done, {"x": torch.full((200_000,), float(done))}, {"n": done}, lambda f: f.mkdir())
    print(done, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint_that_agrees_with_the_metrics(
    tmp_path: Path,
) -> None:
    Run.create(tmp_path, "first", CONFIG, []).close()
    folder, done = tmp_path / "first", 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(folder), str(done)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        said = [int(child.stdout.readline()) for _ in range(4)]
        child.kill()
        child.wait()
        assert said == [done + 1, done + 2, done + 3, done + 4]
        with Run.open(folder) as run:
            latest = run.latest()
            assert latest is not None
            state = read_checkpoint(latest).state
            assert state["n"] == state["iteration"] >= said[-1]
            done = state["n"]
            run.rewind(done)
            assert [line["iteration"] for line in lines(run)] == list(range(1, done + 1))


def test_tensorboard_gets_the_same_numbers_and_forgets_after_a_rewind(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Run.create(tmp_path, "first", CONFIG, [], trackers=["tensorboard"]) as run:
        for iteration in range(4):
            run.log(iteration, {"loss": iteration / 2, "nan": float("nan")})
        run.rewind(1)
        run.log(2, {"loss": 7.0})
    accumulator = events.EventAccumulator(str(run.folder / "tensorboard"))
    accumulator.Reload()
    assert accumulator.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in accumulator.Scalars("loss")] == [
        (0, 0.0),
        (1, 0.5),
        (2, 7.0),
    ]


def test_the_evaluation_folder_is_made_when_asked_for(tmp_path: Path) -> None:
    with Run.create(tmp_path, "first", CONFIG, []) as run:
        assert not (run.folder / "eval").exists()
        assert run.eval_folder.is_dir()
        assert run.eval_folder.is_dir()
