"""The installed command in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def vla_rl(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "vla_rl", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **environment},
        check=False,
    )


def test_a_mistake_ends_with_code_2_and_one_line_whatever_the_terminal() -> None:
    for encoding in ("utf-8", "ascii"):
        done = vla_rl("train", "--ppo.gamma", "2", PYTHONIOENCODING=encoding)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr == "vla-rl: train: ppo.gamma: expected a number from 0 to 1, got 2.0\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_help_is_printed_in_the_terminals_encoding_and_a_reader_may_leave(encoding: str) -> None:
    done = vla_rl("eval", "--help", PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    assert done.stderr == ""
    assert ("│" in done.stdout) == (encoding == "utf-8")
    command = f"{sys.executable} -m vla_rl train --help | head -n 1"
    piped = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert piped.stdout.startswith("usage: vla-rl train [PRESET]")
    assert piped.stderr == ""


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = vla_rl("eval", tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "nothing") in done.stderr
    debug = vla_rl("eval", tmp_path / "nothing", "--debug")
    assert "Traceback" in debug.stderr


def test_the_report_of_a_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    done = vla_rl("report", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "no run folder" in done.stderr


def test_fine_tuning_without_a_dataset_is_one_line(tmp_path: Path) -> None:
    done = vla_rl("sft", "--dataset", tmp_path / "none", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "none") in done.stderr


def test_training_without_a_pretrained_policy_is_one_line_and_leaves_no_folder(
    tmp_path: Path,
) -> None:
    done = vla_rl("train", "--run.root", tmp_path, "--run.name", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "policy.checkpoint" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_speaks_json() -> None:
    done = vla_rl("doctor", "--json")
    checks = json.loads(done.stdout)
    assert done.returncode == (1 if any(check["status"] == "fail" for check in checks) else 0)
    assert {"python", "torch", "disk"} <= {check["name"] for check in checks}
