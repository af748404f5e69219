"""A report shows what the run made: what a link in the run's folder leads to does not end up in it."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from vla_rl.report.page.write import write_report
from vla_rl.report.run_data import read_run

SECRET = "a line of somebody else's file 4711"


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", ["before", "after"])
def test_a_video_that_is_a_link_out_is_left_out(run: Path, tmp_path: Path, stage: str) -> None:
    private = tmp_path / "private.png"
    private.write_bytes(SECRET.encode())
    folder = run / "eval" / "videos" / stage
    index = json.loads((folder / "index.json").read_text())
    (folder / "leak.png").symlink_to(private)
    index[0]["file"] = "leak.png"
    (folder / "index.json").write_text(json.dumps(index))
    page = page_of(run)
    assert base64.b64encode(SECRET.encode()).decode() not in page
    assert f"eval/videos/{stage}/leak.png is a link that leads out of the run&#x27;s folder" in page


@pytest.mark.parametrize("place", ["eval", "eval/videos", "eval/videos/after"])
def test_a_folder_that_is_a_link_out_is_left_out(run: Path, tmp_path: Path, place: str) -> None:
    elsewhere = shutil.move(run / place, tmp_path / "elsewhere")
    whole = len(read_run(run).videos)
    (run / place).symlink_to(elsewhere)
    found = read_run(run)
    assert all(video.stage == "before" for video in found.videos)
    assert len(found.videos) == whole
    assert any("leads out of the run's folder" in problem for problem in found.problems)


@pytest.mark.parametrize(
    "name", ["config.json", "run.json", "metrics.jsonl", "sft.jsonl", "eval/before-greedy.json"]
)
def test_a_file_that_is_a_link_out_is_left_out(run: Path, tmp_path: Path, name: str) -> None:
    row = {"command": [SECRET], "iteration": 1, "epoch": 1, "policy": {"checkpoint": SECRET}}
    private = tmp_path / "private.json"
    private.write_text(json.dumps(row | {"tasks": {SECRET: {"successes": 1, "episodes": 2}}}))
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(private)
    page = page_of(run)
    assert SECRET not in page.replace("&#x27;", "'")
    assert f"{name} is a link that leads out" in page


def test_links_within_the_run_and_to_the_run_are_followed(run: Path, tmp_path: Path) -> None:
    before = run / "eval" / "videos" / "before"
    shutil.move(before, run / "kept")
    before.symlink_to(run / "kept")
    whole = len(read_run(run).videos)
    assert whole
    (tmp_path / "link").symlink_to(run)
    found = read_run(tmp_path / "link")
    assert len(found.videos) == whole
    assert not found.problems


def test_a_report_written_over_a_link_replaces_the_link(run: Path, tmp_path: Path) -> None:
    private = tmp_path / "private.html"
    private.write_text(SECRET)
    (run / "report.html").symlink_to(private)
    assert "VLA-RL report" in page_of(run)
    assert private.read_text() == SECRET
