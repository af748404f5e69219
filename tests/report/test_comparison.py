"""Runs against runs: which belong together, what their numbers are, and what is said where they cannot be compared."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.practised_runs import STATES, TASKS, practised
from vla_rl.cli import main
from vla_rl.config import UserError
from vla_rl.recipes.presets import preset
from vla_rl.report.comparison.curves import area, band, common_range, curve_of
from vla_rl.report.comparison.selection import Selection, select_runs
from vla_rl.report.comparison.study import DIVERGED, Comparison, compare
from vla_rl.report.comparison.table import markdown
from vla_rl.report.comparison.write import compare_runs
from vla_rl.report.page.write import write_report
from vla_rl.report.run_data import read_run

TOY = preset("toy")
FAST = replace(TOY, optimizer=replace(TOY.optimizer, learning_rate=3e-3))
EPISODES = STATES * len(TASKS)


def compared(*words: str | Path) -> Comparison:
    return compare(select_runs([str(word) for word in words]))


def names(selection: Selection) -> dict[str, list[str]]:
    return {group.name: [run.folder.name for run in group.runs] for group in selection.groups}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two groups of two seeds, of which the second one learns more."""
    for seed in (0, 1):
        practised(tmp_path, f"slow-seed-{seed}", seed=seed, wins={"before": 1, "after": 2 + seed})
        practised(
            tmp_path, f"fast-seed-{seed}", seed=seed, config=FAST, wins={"before": 1, "after": 4},
            success=np.linspace(0.2, 1.0, 20).tolist(),
        )  # fmt: skip
    return tmp_path


# -- which belong together


def test_runs_that_differ_in_their_seed_alone_are_one_group(two: Path) -> None:
    expected = {"slow": ["slow-seed-0", "slow-seed-1"], "fast": ["fast-seed-0", "fast-seed-1"]}
    assert names(select_runs([f"{two}/slow*", f"{two}/fast*"])) == expected
    # a folder of runs stands for all of them
    assert names(select_runs([str(two)])) == expected
    # how the work is shared out, and where evaluations are, is no difference
    config = replace(TOY, env=replace(TOY.env, num_workers=3), eval=replace(TOY.eval, videos=1))
    practised(two, "slow-seed-2", seed=2, config=config)
    assert len(names(select_runs([f"{two}/slow*"]))["slow"]) == 3


def test_groups_are_called_by_what_differs_where_folders_do_not_say_it(tmp_path: Path) -> None:
    practised(tmp_path, "a")
    practised(tmp_path, "b", seed=1)
    practised(tmp_path, "c", config=FAST)
    assert list(names(select_runs([str(tmp_path)]))) == [
        "learning_rate 0.001",
        "learning_rate 0.003",
    ]


def test_a_run_called_ppo_hides_no_others_and_keeps_its_name(tmp_path: Path) -> None:
    practised(tmp_path, "ppo")
    practised(tmp_path, "grpo", config=preset("toy-grpo"))
    assert set(names(select_runs([str(tmp_path)]))) == {"grpo", "ppo"}
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path)  # of which of the two?
    # a quickstart's is called after the quickstart, also where only the fine-tuning's curve tells
    quick = practised(tmp_path / "quick", "ppo").parent
    for mark in ("quickstart.json", "ppo/sft.jsonl"):
        (quick / mark).write_text("{}")
        assert list(names(select_runs([str(quick), str(tmp_path / "grpo")]))) == ["quick", "grpo"]
        (quick / mark).unlink()


def test_the_seed_in_the_folder_of_a_checkpoint_is_no_difference(tmp_path: Path) -> None:
    for seed in (0, 1):
        policy = replace(TOY.policy, checkpoint=f"runs/seed-{seed}/sft/policy")
        practised(tmp_path, f"x-{seed}", seed=seed, config=replace(TOY, policy=policy))
    assert len(select_runs([str(tmp_path)]).groups) == 1


def test_names_put_runs_together_and_what_else_differs_is_said(two: Path) -> None:
    selection = select_runs(
        [f"both={two}/slow-seed-0", f"both={two}/fast-seed-1", f"{two}/fast-seed-0"]
    )
    assert names(selection) == {"both": ["slow-seed-0", "fast-seed-1"], "fast": ["fast-seed-0"]}
    assert any(
        "'both' differ in more than their seed: optimizer.learning_rate" in n
        for n in selection.notes
    )


def test_a_run_given_twice_counts_once_and_a_copy_is_no_other_run(two: Path) -> None:
    shutil.copytree(two / "slow-seed-0", two / "copy")
    link = two / "link"
    link.symlink_to(two / "slow-seed-0")
    selection = select_runs(
        [f"{two}/slow-seed-0", str(link), str(two / "copy"), f"{two}/slow-seed-1"]
    )
    assert [len(group.runs) for group in selection.groups] == [2]
    assert any("given twice" in note for note in selection.notes)
    assert any("copy is a copy of" in note for note in selection.notes)
    with pytest.raises(UserError, match="a run can be in one group only"):
        select_runs([f"a={two}/slow-seed-0", f"b={link}"])


def test_runs_of_one_seed_are_said_and_not_paired(tmp_path: Path) -> None:
    practised(tmp_path, "first")
    practised(tmp_path, "second", seconds=31)
    practised(tmp_path, "other", config=FAST)
    comparison = compared(f"a={tmp_path}/first", f"a={tmp_path}/second", f"b={tmp_path}/other")
    assert any("have the same seed, 0" in note for note in comparison.notes)
    assert not comparison.groups[1].differences["greedy"].by_seed


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("{}/slow-seed-9", r"no run folder at .*slow-seed-9\. Did you mean 'slow-seed-"),
        ("{}/nothing*", "no run folder at"),
        ("name={}/slow-seed-9", "no run folder at"),
        ("={}/slow-seed-0", "expected NAME=RUN"),
        ("{}/empty", "is no run folder"),
        ("{}/file", "is no run folder"),
        ("{}/tuning", "is a run of SFTConfig, expected one of `vla-rl train`"),
        ("{}/empt*", "leads to no run folder"),
    ],
)  # fmt: skip
def test_what_leads_to_no_training_run_is_said(word: str, message: str, two: Path) -> None:
    (two / "empty").mkdir()
    (two / "file").write_text("")
    shutil.copytree(two / "slow-seed-0", two / "tuning")
    described = json.loads((two / "tuning" / "run.json").read_text())
    (two / "tuning" / "run.json").write_text(json.dumps({**described, "config_type": "SFTConfig"}))
    with pytest.raises(UserError, match=message):
        select_runs([word.format(two)])
    with pytest.raises(UserError, match="expected runs"):
        select_runs([])


def test_the_settings_of_a_damaged_configuration_are_like_no_others(two: Path) -> None:
    (two / "slow-seed-1" / "config.json").write_text("{")
    comparison = compared(two / "slow-seed-0", two / "slow-seed-1")
    assert len(comparison.groups) == 2
    assert any("config.json could not be read" in note for note in comparison.notes)


# -- numbers


def test_success_and_differences_are_over_seeds_and_states(two: Path) -> None:
    slow, fast = compared(f"{two}/slow*", f"{two}/fast*").groups
    success = slow.success["after", "greedy"]
    assert success.each == (0.4, 0.6)
    assert success.mean == pytest.approx(0.5)
    assert success.episodes == 2 * EPISODES
    # Student's of 0.4 and 0.6: 0.5 +- 12.706 * 0.1
    assert success.over_seeds is not None
    assert success.over_seeds.high == pytest.approx(0.5 + 1.2706, abs=1e-3)
    found = fast.differences["greedy"]
    assert found.by_seed
    assert found.each == pytest.approx((0.4, 0.2))
    assert found.paired.mean == pytest.approx(0.3)
    assert found.paired.pairs == 2 * EPISODES
    assert slow.differences == {}
    assert (slow.rank, fast.rank) == (2.0, 1.0)
    assert slow.tasks["reach-red"] == pytest.approx({"before": 0.2, "after": 0.5})
    gain = slow.runs[1].gains["greedy"]
    assert (gain.mean, gain.pairs) == (pytest.approx(0.4), EPISODES)


def test_pairs_are_by_state_not_by_place(two: Path) -> None:
    """Episodes in another order are the same episodes."""
    file = two / "fast-seed-0" / "eval" / "after-greedy.json"
    before = compared(f"{two}/slow*", f"{two}/fast*").groups[1].differences["greedy"]
    evaluation = json.loads(file.read_text())
    evaluation["episodes"].reverse()
    file.write_text(json.dumps(evaluation))
    assert compared(f"{two}/slow*", f"{two}/fast*").groups[1].differences["greedy"] == before


def test_groups_without_a_seed_in_common_are_paired_by_state_alone(tmp_path: Path) -> None:
    practised(tmp_path, "a", seed=0, wins={"after": 2})
    practised(tmp_path, "b", seed=1, config=FAST, wins={"after": 3})
    found = compared(tmp_path / "a", tmp_path / "b").groups[1].differences["greedy"]
    assert not found.by_seed
    assert (found.paired.mean, found.paired.pairs) == (pytest.approx(0.2), EPISODES)


def test_practice_is_compared_over_what_all_runs_spent(tmp_path: Path) -> None:
    """A run of twice the length at the same pace: the area is over the shorter one's range."""
    level = [0.25] * 20
    practised(tmp_path, "short", success=level)
    practised(tmp_path, "long", config=FAST, success=[0.25] * 20 + [1.0] * 20)
    comparison = compared(tmp_path / "short", tmp_path / "long")
    assert comparison.ranges["episodes"] == (1000.0, 2000.0)
    for group in comparison.groups:
        assert group.practice["episodes"].area == pytest.approx((0.25,))


def test_what_is_needed_to_reach_the_first_group(two: Path) -> None:
    slow, fast = compared(f"{two}/slow*", f"{two}/fast*").groups
    # the slow ones end at a running mean over 0.505; the fast ones are twice as steep
    needed = fast.practice["episodes"].needed
    target = np.linspace(0.2, 0.6, 20)[-10:].mean()
    curve = np.convolve(np.linspace(0.2, 1.0, 20), np.full(10, 0.1), "valid")
    assert needed == (100.0 * (10 + int(np.argmax(curve >= target))),) * 2
    assert slow.practice["minutes"].needed == pytest.approx((10.0, 10.0 + 1 / 420))
    back = compared(f"{two}/fast*", f"{two}/slow*").groups[1]
    assert back.practice["episodes"].needed == (math.inf, math.inf)


def test_a_task_that_was_not_played_keeps_its_last_success(tmp_path: Path) -> None:
    run = practised(tmp_path, "a", success=[0.5] * 4)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["success/reach-red"] = None if number in (0, 2) else 1.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = curve_of(read_run(run))
    # in the first iteration nothing was known of one task: the mean over the others would be of something else
    assert curve.episodes.tolist() == [200, 300, 400]
    assert curve.success == pytest.approx([0.625] * 3)


def test_curves_without_a_range_in_common_have_no_band(tmp_path: Path) -> None:
    early = curve_of(read_run(practised(tmp_path, "a", success=[0.5] * 4)))
    late = replace(early, episodes=early.episodes + 1000)
    assert common_range([early, late], 1, "episodes") is None
    assert band([early, late], 1, "episodes") is None
    assert area(early, 1, "episodes", (100.0, 1200.0)) is None


# -- what cannot be compared is said


def test_runs_of_different_tasks_are_refused(tmp_path: Path) -> None:
    practised(tmp_path, "a")
    practised(tmp_path, "b", config=replace(TOY, env=replace(TOY.env, suite="toy:reach-red")))
    (tmp_path / "b" / "metrics.jsonl").write_text("")
    shutil.rmtree(tmp_path / "b" / "eval")
    with pytest.raises(UserError, match=r"same tasks, got 2 suites \(toy: .*; toy:reach-red: "):
        compared(tmp_path)


def test_an_unfinished_run_counts_in_no_mean(two: Path) -> None:
    whole = compared(f"{two}/slow-seed-0", f"{two}/fast*")
    unfinished = practised(two, "slow-seed-2", seed=2, success=[0.9] * 25, wins={"before": 5})
    comparison = compared(f"{two}/slow-seed-[02]", f"{two}/fast*")
    assert comparison.ranges == whole.ranges
    slow, reference = comparison.groups[0], whole.groups[0]
    assert slow.success["after", "greedy"] == reference.success["after", "greedy"]
    assert slow.practice["episodes"].area == reference.practice["episodes"].area
    assert any(f"--resume {unfinished}" in note for note in comparison.notes)
    assert "| 1 of 2 |" in markdown(comparison)


def test_an_evaluation_that_was_made_otherwise_is_left_out(two: Path) -> None:
    file = two / "slow-seed-1" / "eval" / "after-greedy.json"
    evaluation = json.loads(file.read_text())
    file.write_text(json.dumps({**evaluation, "horizon": 99}))
    comparison = compared(f"{two}/slow*", f"{two}/fast*")
    assert comparison.groups[0].success["after", "greedy"].each == (0.4,)
    assert comparison.groups[0].success["after", "sampled"].each == (0.4, 0.6)
    told = [note for note in comparison.notes if "left out" in note]
    assert len(told) == 1
    assert "slow-seed-1 is left out, it was evaluated with horizon 99" in told[0]


def test_of_different_numbers_of_episodes_the_shared_states_are_compared(two: Path) -> None:
    practised(two, "wide-seed-0", states=STATES + 3, wins={"before": 1, "after": STATES + 3})
    comparison = compared(f"{two}/slow-seed-0", f"wide={two}/wide*")
    wide = comparison.groups[1].success["after", "greedy"]
    assert (wide.mean, wide.episodes) == (1.0, EPISODES)
    assert any(f"the {EPISODES} that all share" in note for note in comparison.notes)


def test_states_that_no_other_run_has_are_left_out(two: Path) -> None:
    file = two / "slow-seed-1" / "eval" / "after-greedy.json"
    evaluation = json.loads(file.read_text())
    for episode in evaluation["episodes"]:
        episode["initial_state"] -= 500
    file.write_text(json.dumps(evaluation))
    comparison = compared(f"{two}/slow*", f"{two}/fast*")
    assert comparison.groups[0].success["after", "greedy"].each == (0.4,)
    assert any(
        "slow-seed-1 left out, evaluated on other initial states" in n for n in comparison.notes
    )


def test_numbers_that_are_not_finite_leave_a_gap_and_are_said(two: Path) -> None:
    file = two / "slow-seed-0" / "metrics.jsonl"
    lines = file.read_text().splitlines()
    lines[5] = lines[5].replace('"total/episodes": 600', '"total/episodes": NaN')
    assert "NaN" in lines[5]
    file.write_text("\n".join(lines) + "\n")
    comparison = compared(f"{two}/slow*")
    assert len(comparison.groups[0].runs[0].curve) == 19
    assert any("not finite (total/episodes)" in note for note in comparison.notes)
    assert "numbers that are not finite" in markdown(comparison)


def test_a_run_that_diverged_is_said(two: Path) -> None:
    (two / "slow-seed-1" / DIVERGED).write_text("loss is nan")
    comparison = compared(f"{two}/slow*")
    assert any("slow-seed-1 diverged" in note for note in comparison.notes)
    assert "| diverged |" in markdown(comparison)


def test_one_seed_alone_has_no_interval_over_seeds(two: Path) -> None:
    comparison = compared(f"{two}/slow-seed-0", f"{two}/fast-seed-0")
    assert comparison.groups[0].success["after", "greedy"].over_seeds is None
    assert any("One finished run alone: slow, fast" in note for note in comparison.notes)
    assert ", seeds" not in markdown(comparison).replace("over seeds", "")


def test_runs_without_evaluations_or_a_critic_have_curves(tmp_path: Path) -> None:
    """Nothing but success and what was spent is asked of the metrics."""
    for seed in (0, 1):
        practised(tmp_path, f"a-seed-{seed}", seed=seed, wins={})
        shutil.rmtree(tmp_path / f"a-seed-{seed}" / "eval", ignore_errors=True)
    comparison = compared(tmp_path)
    assert comparison.groups[0].success == {}
    assert comparison.groups[0].practice["episodes"].area == pytest.approx((0.4, 0.4), abs=0.1)
    assert any("No run has been evaluated after practice" in note for note in comparison.notes)


def test_what_is_no_success_is_not_counted_as_one(two: Path) -> None:
    file = two / "slow-seed-1" / "eval" / "after-greedy.json"
    evaluation = json.loads(file.read_text())
    evaluation["episodes"][-1]["success"] = "false"
    file.write_text(json.dumps(evaluation))
    comparison = compared(f"{two}/slow*", f"{two}/fast*")
    assert comparison.groups[0].success["after", "greedy"].each == (0.4,)
    assert any("slow-seed-1 is left out, its evaluation has no list" in n for n in comparison.notes)


def test_shares_that_are_none_are_left_out_of_the_curve_and_said(two: Path) -> None:
    file = two / "slow-seed-0" / "metrics.jsonl"
    file.write_text(
        file.read_text().replace('"success/reach-red": 0.6,', '"success/reach-red": 60,')
    )
    comparison = compared(f"{two}/slow*")
    assert comparison.groups[0].runs[0].curve.success.max() < 0.61
    assert any("success of reach-red is outside of 0..1" in note for note in comparison.notes)


@pytest.mark.parametrize("content", ["", "nonsense\n", '{"iteration": 1}\n', "[1]\n{}\nnull\n"])
def test_any_metrics_file_is_read(content: str, two: Path) -> None:
    (two / "slow-seed-0" / "metrics.jsonl").write_text(content)
    comparison = compared(f"{two}/slow*")
    assert len(comparison.groups[0].runs[0].curve) == 0
    assert any("slow-seed-0 has no curve" in note for note in comparison.notes)


# -- the command


def test_the_command_writes_a_table_values_and_pictures(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    practised(two, "fast-seed-2", seed=2, config=FAST, during={10: 2}, success=[0.3, 0.4])
    assert main(["compare", f"{two}/slow*", f"fast={two}/fast*", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert (out / "comparison.md").read_text() in shown
    row = next(line for line in shown.splitlines() if line.startswith("| fast | 3 |"))
    assert "+30.0 [" in row
    assert "(+40, +20), seeds [" in row
    values = json.loads((out / "comparison.json").read_text())
    assert [group["name"] for group in values["groups"]] == ["slow", "fast"]
    assert values["groups"][1]["difference_to_first"]["greedy"]["each"] == pytest.approx([0.4, 0.2])
    assert values["groups"][1]["practice"]["episodes"]["needed"][2] is None
    for picture in ("comparison.png", "comparison-tasks.png"):
        assert (out / picture).stat().st_size > 5000
    assert main(["compare"]) == 2
    assert main(["compare", str(two / "nowhere")]) == 2


def test_names_from_outside_stay_in_their_cells(two: Path, tmp_path: Path) -> None:
    """Nor do they end a table's row, hide a line of the legend, or stop the pictures as damaged formulas."""
    words = [f"a|b\n<i>={two}/slow*", f"_$x^^$={two}/fast*"]
    table = compare_runs(words, tmp_path / "out", title="$_$").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| a")]
    assert all(line.startswith(r"| a\|b\n&lt;i>") for line in rows)
    assert rows
