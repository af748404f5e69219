from __future__ import annotations

import json
import re
from pathlib import Path

from parsed_page import Page, edit, page_of

from builders.example_run import MT5
from vla_rl.report.page.videos import films
from vla_rl.report.run_data import read_run


def test_videos_are_paired_by_initial_state_and_captioned(example: Path):
    pairs = re.findall(r"Initial state (\d+)", films(read_run(example)))
    assert pairs == ["900", "901"] * len(MT5)
    page = page_of(example)
    for stage in ("before", "after"):
        for entry in json.loads((example / "eval/videos" / stage / "index.json").read_text()):
            outcome = "success" if entry["success"] else "failure"
            assert f"{stage.capitalize()} · {outcome} {entry['turns']} turns" in page.text


def test_videos_of_other_initial_states_stand_side_by_side_with_their_numbers(run: Path):
    index = run / "eval/videos/after/index.json"
    edit(index, lambda rows: [row | {"initial_state": row["initial_state"] + 1} for row in rows])
    html = films(read_run(run))
    text = Page(html).text
    # 901 is there twice; 900 was recorded before only, 902 after only
    assert re.findall(r"(Initial state \d+|Two initial states)", text)[:2] == [
        "Initial state 901", "Two initial states",
    ]  # fmt: skip
    assert re.findall(r"initial state (\d+), \d+ turn", text)[:2] == ["900", "902"]
    assert html.count("<video") == 4 * len(MT5)


def test_videos_beyond_the_limit_are_left_out_task_by_task(example: Path):
    run = read_run(example)
    whole = films(run)
    assert "more recorded episodes" not in whole
    half = films(run, limit=len(whole) // 2 + 2000)
    assert len(half) < len(whole)
    assert all(task in half for task in MT5)
    shown = half.count("<video")
    assert len(MT5) * 2 <= shown < len(MT5) * 4
    assert f"{len(MT5) * 4 - shown} more recorded episodes" in half


def test_an_index_cannot_name_files_outside_its_folder(run: Path):
    index = run / "eval/videos/before/index.json"
    edit(
        index,
        lambda rows: [rows[0] | {"file": "../../../config.json"}, rows[1] | {"file": "gone.mp4"}],
    )
    read = read_run(run)
    assert not [video for video in read.videos if video.stage == "before"]
    assert len(read.problems) == 2


def test_a_damaged_video_is_said_in_its_place(run: Path):
    (run / "eval/videos/after/000.mp4").write_bytes(b"nothing")
    assert "000.mp4: expected a video" in page_of(run).text
