from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parsed_page import Page, edit, edit_lines, page_of, set_

from builders.example_run import MT5, make_evaluation, make_run, write_json
from vla_rl.config import UserError
from vla_rl.report.page.summary import (
    comparison,
    counted,
    duration,
    story,
    training_seconds,
    warnings,
)
from vla_rl.report.page.write import render, write_report
from vla_rl.report.run_data import read_run


def test_writes_one_small_file_that_refers_to_nothing_else(example: Path, tmp_path: Path):
    out = write_report(example, tmp_path / "new" / "page.html")
    assert out == tmp_path / "new" / "page.html"
    assert out.stat().st_size < 15_000_000
    html = out.read_text(encoding="utf-8")
    page = Page(html)
    assert page.links
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"url\(|@import|src=\"http|href=\"http", html)
    assert "default-src 'none'" in html
    assert page.tags.count("video") == 4 * len(MT5)


def test_default_place_is_the_run_folder(run: Path):
    assert write_report(run) == run / "report.html"
    assert (run / "report.html").is_file()


def test_numbers_of_the_page_are_those_of_the_files(example: Path):
    text = page_of(example).text
    for stage in ("before", "after"):
        for mode in ("greedy", "sampled"):
            raw = json.loads((example / "eval" / f"{stage}-{mode}.json").read_text())
            for rate in [*raw["tasks"].values(), raw["overall"]]:
                low, high = (f"{100 * bound:.1f}%" for bound in rate["interval"])
                shown = f"{100 * rate['success_rate']:.1f}% {rate['successes']} of {rate['episodes']} [{low}, {high}]"
                assert shown in text
    rows = [json.loads(line) for line in (example / "metrics.jsonl").read_text().splitlines()]
    assert f"{sum(row['rollout/episodes'] for row in rows):,} practice episodes" in text
    assert f"{len(rows)} updates" in text
    seconds = sum(
        row[f"time/{part}"] for row in rows for part in ("simulate", "infer", "learn", "other")
    )
    assert duration(seconds) in text


def test_known_answers(example: Path):
    text = page_of(example).text
    # Wilson 95 %: 54 of 150, 120 of 150, 4 of 30
    assert "36.0% 54 of 150 [28.8%, 43.9%]" in text
    assert "80.0% 120 of 150 [72.9%, 85.6%]" in text
    assert "13.3% 4 of 30 [5.3%, 29.7%]" in text
    # 66 of 150 pairs gain, none loses: 0.44 +- 1.96 sqrt(0.44 * 0.56 / 149)
    assert "success rose from 36.0% to 80.0%" in text
    assert "a gain of 44.0 points (95% interval +36.0 to +52.0)" in text
    assert "machine with 2 CPU cores" in text


def hand_made(folder: Path, before: list[int], after: list[int], states: int = 4) -> Path:
    """A run of two tasks that is nothing but two evaluations: successes per task out of `states`."""
    (folder / "eval").mkdir(parents=True)
    for stage, wins in (("before", before), ("after", after)):
        chances = [count / states for count in wins]
        evaluation = make_evaluation(stage, "greedy", ("reach", "push"), chances, range(states))
        write_json(folder / "eval" / f"{stage}-greedy.json", evaluation)
    return folder


def test_story_of_a_gain_a_loss_and_no_change(tmp_path: Path):
    gain = " ".join(story(read_run(hand_made(tmp_path / "a", [0, 0], [40, 0], 40))))
    assert "its success rose from 0.0% to 50.0%" in gain
    assert "that is a gain of 50.0 points (95% interval +39.0 to +61.0)" in gain
    assert "Measurably better (1 of 2): reach (+100.0)." in gain
    assert "No measurable change (1 of 2): push (0.0)." in gain
    loss = " ".join(story(read_run(hand_made(tmp_path / "b", [40, 40], [0, 0], 40))))
    assert "its success fell from 100.0% to 0.0%" in loss
    assert "that is a loss of 100.0 points" in loss
    assert "Worse (2 of 2)" in loss
    same = " ".join(story(read_run(hand_made(tmp_path / "c", [10, 10], [10, 10], 40))))
    assert "its success stayed at 25.0%" in same
    assert "cannot tell from no change" in same


def test_pairs_are_of_the_same_initial_state(tmp_path: Path):
    folder = hand_made(tmp_path / "a", [4, 4], [4, 4])

    def shift(evaluation: dict[str, Any]) -> None:
        evaluation["initial_states"] = [2, 3, 4, 5]
        for episode in evaluation["episodes"]:
            episode["initial_state"] += 2

    edit(folder / "eval" / "after-greedy.json", shift)
    run = read_run(folder)
    paired = comparison(run, "greedy").paired
    assert paired is not None
    assert paired.pairs == 4
    said = " ".join(warnings(run))
    assert "Only 4 initial states were played both before and after" in said
    assert "differ in initial_states" in said


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("eval/after-greedy.json", set_(infrastructure_errors=3), "3 simulator failures in after-greedy.json"),
        ("eval/after-greedy.json", set_(horizon=30), "greedy evaluations before and after differ in horizon"),
        ("eval/after-greedy.json", set_(split="train"), "also trained on"),
        ("run.json", set_(git={"revision": "ab", "dirty": True}), "uncommitted changes"),
        ("config.json", lambda c: c["schedule"].update(iterations=100), "stopped early: 69 of 100"),
        ("config.json", lambda c: c["schedule"].update(iterations=100, minutes=20), "10 min 5 s of the planned 20 min"),
    ],
)  # fmt: skip
def test_warnings(run: Path, file: str, change: Callable[[Any], None], expected: str):
    assert expected not in " ".join(warnings(read_run(run)))
    edit(run / file, change)
    assert expected in " ".join(warnings(read_run(run)))
    assert expected in page_of(run).text


def test_a_run_of_its_planned_minutes_did_not_stop_early(run: Path):
    edit(run / "config.json", lambda c: c["schedule"].update(iterations=500, minutes=10))
    assert "stopped early" not in " ".join(warnings(read_run(run)))


def test_warnings_of_training(run: Path):
    def damage(rows: list[dict[str, Any]]) -> None:
        for i, row in enumerate(rows):
            row["rollout/infrastructure_errors"] = (0, 1, 1, 3, 0, 2)[min(i, 5)]
            row["rollout/success_rate"] = 0.9 if i < 40 else 0.1
        rows[3]["losses/value"] = float("nan")
        rows[4]["losses/logprob_max_difference"] = 0.5

    edit_lines(run / "metrics.jsonl", damage)
    said = " ".join(warnings(read_run(run)))
    # 3 failures, then a resumed process that starts counting anew and sees 2
    assert "5 simulator failures during training" in said
    assert "not finite in losses/value" in said
    assert "best around iteration" in said
    assert "disagreed on log-probs by up to 0.5" in said


def test_few_episodes_overlap_and_the_single_seed_are_said(tmp_path: Path):
    said = " ".join(warnings(read_run(hand_made(tmp_path / "a", [1, 1], [2, 2]))))
    assert "Only 4 test episodes per task" in said
    assert "intervals before and after overlap" in said
    assert "one run with one seed" in said


@pytest.mark.parametrize(
    "gone",
    [
        ["config.json"],
        ["run.json"],
        ["metrics.jsonl"],
        ["eval/after-greedy.json", "eval/after-sampled.json"],
        ["eval/before-greedy.json"],
        ["eval/videos/before/index.json"],
        ["config.json", "run.json", "sft.jsonl", "eval"],
        ["config.json", "run.json", "sft.jsonl", "metrics.jsonl", "eval/videos"],
    ],
)
def test_what_is_missing_is_said(run: Path, gone: list[str]):
    for name in gone:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = page_of(run).text
    assert "Missing from this run folder" in text
    for name in gone:
        if name.endswith(".json") and "videos" not in name and name != "sft.jsonl":
            assert name in text


def test_a_whole_run_misses_nothing(example: Path):
    whole = read_run(example)
    assert whole.missing == whole.problems == ()
    assert "Missing from" not in page_of(example).text


def test_no_run_folder_is_a_user_error(tmp_path: Path):
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match=r"no run folder.*config\.json, metrics\.jsonl"):
            write_report(folder)


def test_damaged_lines_and_repeated_iterations(run: Path):
    rows = (run / "metrics.jsonl").read_text().splitlines()[:3]
    again = json.loads(rows[2]) | {"rollout/success_rate": 0.125}
    (run / "metrics.jsonl").write_text(
        "\n".join([*rows, json.dumps(again), '{"iteration": 3, "loss'])
    )
    read = read_run(run)
    assert read.metrics.index.tolist() == [0, 1, 2]
    assert read.metrics.columns["rollout/success_rate"][2] == 0.125
    assert read.problems == ("metrics.jsonl: 1 line was damaged and left out (a run cut short).",)


def test_counts_that_contradict_the_episodes_are_said(run: Path):
    edit(run / "eval/after-greedy.json", lambda e: e["overall"].update(successes=121))
    assert "121 of 150" in " ".join(read_run(run).problems)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda e: e["overall"].update(successes=-5),
            "(0 of 0) and the list of episodes (120 of 150)",
        ),
        (lambda e: e["tasks"]["push-v3"].update(successes=0), "do not agree; the list is shown"),
        (lambda e: e.update(format=2), "has format 2"),
        (lambda e: e.update(episodes=[]), "nothing can be paired"),
    ],
)
def test_evaluations_that_contradict_themselves_are_shown_by_their_episodes(
    tmp_path: Path, change: Callable[[Any], None], said: str
):
    folder = make_run(tmp_path / "run", tasks=("reach-v3", "push-v3", "a", "b", "c"), iterations=4)
    edit(folder / "eval/after-greedy.json", change)
    found = read_run(folder)
    assert said in " ".join(found.problems)
    rate = found.evaluations["after", "greedy"].overall
    assert (rate.successes, rate.episodes) == (120, 150)


def test_a_pipe_is_left_out(run: Path):
    for name in ("run.json", "sft.jsonl"):
        (run / name).unlink()
        os.mkfifo(run / name)
    problems = " ".join(read_run(run).problems)
    assert "run.json is no file" in problems
    assert "sft.jsonl is no file" in problems


def test_hostile_strings_stay_text(tmp_path: Path):
    hostile = "\"'></script><img src=x onerror=alert(1)>&"
    folder = make_run(
        tmp_path / "<b onload=x>", tasks=(hostile, "push"), iterations=4, videos_per_task=1
    )
    edit(
        folder / "config.json",
        lambda c: c["policy"].update(checkpoint=hostile) or c | {hostile: {hostile: hostile}},
    )
    edit(folder / "run.json", lambda r: r.update(command=[hostile], versions={hostile: hostile}))
    edit(
        folder / "eval/before-greedy.json",
        lambda e: e.update(suite=hostile, split=hostile, checkpoint=hostile),
    )
    page = page_of(folder)
    assert page.tags.count("script") == 1
    assert page.tags.count("img") == page.tags.count("video") == 4
    assert not page.handlers
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert hostile in page.text


def test_evaluations_within_the_run_are_named_by_folders(run: Path):
    for stage in ("before", "after"):
        edit(run / f"eval/{stage}-greedy.json", set_(checkpoint=stage))
    text = page_of(run).text
    assert "vla-rl eval runs/sft/policy --suite mt5" in text
    assert f"vla-rl eval {run} --suite mt5" in text


def test_evaluations_during_training_are_dots_on_the_learning_curve(run: Path):
    assert read_run(run).during == {}
    overall = {"successes": 3, "episodes": 4}
    write_json(run / "eval" / "iteration-000020.json", {"overall": overall})
    write_json(run / "eval" / "iteration-000034.json", {"overall": overall | {"successes": 1}})
    html = render(read_run(run))
    dots = re.search(r'<path class="line dots c3" d="([^"]*)"', html)
    assert dots is not None
    assert dots[1] == "M294 250h0M500 750h0"


def test_changed_settings_are_shown_with_their_defaults(example: Path):
    text = page_of(example).text
    assert "curriculum.mode frontier paper" in re.sub(r"(curriculum\.mode|frontier)", r"\1 ", text)
    assert "git checkout 4f2c9e1b7d0a4c55b1f0e6a9d8c7b6a5f4e3d2c1" in text
    assert "vla-rl train metaworld-mt5 --run.name example --run.seed 3" in text
    assert "vla-rl eval runs/sft/policy --suite mt5 --split held-out --episodes-per-task 30" in text


def test_time_is_the_sum_of_its_parts(run: Path):
    edit_lines(run / "metrics.jsonl", lambda rows: rows[:2])
    read = read_run(run)
    parts = sum(
        float(read.metrics.columns[f"time/{p}"].sum())
        for p in ("simulate", "infer", "learn", "other")
    )
    assert training_seconds(read) == pytest.approx(parts)
    without = {k: v for k, v in read.metrics.columns.items() if not k.startswith("time/")}
    alone = replace(read, metrics=replace(read.metrics, columns=without))
    assert training_seconds(alone) == pytest.approx(read.metrics.columns["wall_seconds"][-1])


def test_durations():
    assert [duration(s) for s in (0.4, 59.4, 60, 603, 4320, 7200)] == [
        "0 s", "59 s", "1 min", "10 min 3 s", "1 h 12 min", "2 h",
    ]  # fmt: skip


def test_many_tasks_become_a_heat_map(tmp_path: Path):
    tasks = [f"task-{i}" for i in range(12)]
    folder = make_run(
        tmp_path / "many", tasks=tasks, iterations=5, videos_per_task=0, initial_states=range(3)
    )
    html = render(read_run(folder))
    assert html.count('class="heat-row"') == 12
    Page(html)


def test_counter_of_a_resumed_run():
    assert counted(np.array([0.0, 1, np.nan, 3, 0, 2])) == 5
    assert counted(np.array([4.0])) == 4
