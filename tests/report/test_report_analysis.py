"""The report's section of what an analysis found, and episode length over training."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from parsed_page import page_of
from PIL import Image

from builders.example_run import MT5
from vla_rl.config import UserError
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.report.analysis.failures import kinds_not_told, stage_failures
from vla_rl.report.analysis.lengths import curriculum_changes, lengths_of
from vla_rl.report.analysis.record import (
    Agreement,
    Analysis,
    Coverage,
    CoverageView,
    Estimate,
    FailedEpisode,
    Failures,
    KindVideo,
    Spread,
    Stage,
    read_analysis,
    write_analysis,
)
from vla_rl.report.analysis.words import markdown
from vla_rl.report.figures.analysis import busiest, draw_coverage, draw_failures, draw_lengths
from vla_rl.report.run_data import read_run
from vla_rl.report.tables import Table
from vla_rl.runtime.video import write_video
from vla_rl.types import EpisodeSpec


def episodes(failures: int) -> list[EpisodeRecord]:
    return [EpisodeRecord(EpisodeSpec(MT5[0], i), success=i >= failures) for i in range(20)]


def failed(stage: str, *kinds: str) -> list[FailedEpisode]:
    return [FailedEpisode(stage, MT5[0], i, kind) for i, kind in enumerate(kinds)]  # type: ignore[arg-type]


BEFORE = failed("before", "never touched", "never touched", "moved back")
AFTER = failed("after", "moved back")


def example_analysis(run: Path) -> Analysis:
    """An analysis of the example, made by what makes it but for the simulators."""
    one = Estimate(1.5, 1.25, 1.75)
    stages = (
        stage_failures("before", episodes(3), BEFORE),
        stage_failures("after", episodes(1), AFTER),
    )
    video = KindVideo("before", "never touched", "before-never-touched.mp4", MT5[0], 0)
    coverage = CoverageView("own", Spread(9, one, one), Spread(9, one, one), one, ())
    return Analysis(
        1, "mt5", "after", "before", "held-out", 20,
        Coverage(1.0, 20, 4, (coverage,)),
        lengths_of(read_run(run), 5, 0.2),
        Failures(stages, (*BEFORE, *AFTER), (video,), kinds_not_told([])),
        Agreement(2, 0.5, 0.25, one, {"dropped": {"dropped": 1, "moved back": 1}}),
        ("a <note>",),
    )  # fmt: skip


@pytest.fixture
def analysed(run: Path) -> Path:
    analysis = example_analysis(run)
    folder = run / "analysis"
    (folder / "videos").mkdir(parents=True)
    frame = np.zeros((32, 32, 3), np.uint8)
    write_video(folder / "videos" / "before-never-touched.mp4", [frame, frame + 9], 5.0)
    assert analysis.failures is not None
    assert analysis.lengths is not None
    draw_failures(analysis.failures, folder / "failures.png")
    draw_lengths(read_run(run), analysis.lengths, folder / "lengths.png")
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    draw_coverage({"before": actions, "after": actions}, ["x", "y", "z"], folder / "coverage.png")
    write_analysis(folder, analysis, {"settings": {}})
    return run


def test_of_a_body_of_many_joints_the_busiest_are_drawn(tmp_path: Path):
    scale = np.full(17, 0.1)
    scale[[0, 2, 3, 5, 8, 11, 12, 16]] = 1.0
    actions = scale * np.random.default_rng(0).uniform(-1, 1, (60, 17))
    drawn: dict[Stage, np.ndarray] = {"before": actions, "after": actions}
    assert busiest(drawn) == [0, 2, 3, 5, 8, 11, 12, 16]
    draw_coverage(drawn, [str(i) for i in range(17)], tmp_path / "coverage.png")
    with Image.open(tmp_path / "coverage.png") as picture:
        assert picture.height < 2 * picture.width  # 28 pairs; 136 would be a tower


def test_the_section(analysed: Path):
    page = page_of(analysed)
    assert "What practice changed" in page.text
    assert "never touched" in page.text
    assert "2 (10.0 %, 2.8 to 30.1)" in page.text  # Wilson's interval of 2 in 20
    assert "0 of 20" in page.text
    assert "Cohen's kappa 1.50 (1.25 to 1.75)" in page.text
    assert "a <note>" in page.text
    assert sum(link.startswith("data:image/png") for link in page.links) >= 3
    text = markdown(example_analysis(analysed))
    assert "| never touched | 2 (10.0 %, 2.8 to 30.1) | 0 of 20 |" in text
    assert "| dropped | 1 | 1 |" in text.replace("| dropped | 0 | 1 |", "| dropped | 1 | 1 |")


def test_without_an_analysis_there_is_no_section(run: Path):
    assert "What practice changed" not in page_of(run).text
    assert read_analysis(run) is None


def test_no_failures(analysed: Path):
    analysis = example_analysis(analysed)
    none = (
        stage_failures("before", episodes(0), []),
        stage_failures("after", episodes(0), []),
    )
    failures = Failures(none, (), (), ())
    write_analysis(analysed / "analysis", replace(analysis, failures=failures), {})
    assert "No episode failed." in page_of(analysed).text
    assert "No episode failed, of 40." in markdown(replace(analysis, failures=failures))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 2}', '{"format": 1, "suite": 3}', "{" * 5000, '{"a": NaN}'],
)
def test_a_damaged_analysis_is_said(analysed: Path, text: str):
    (analysed / "analysis" / "analysis.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        read_analysis(analysed)
    page = page_of(analysed)
    assert "analysis.json" in page.text
    assert "Learning curves" in page.text  # the rest of the page is there


@pytest.mark.parametrize("name", ["../../config.json", "/etc/passwd", "gone.mp4", "<b>.mp4"])
def test_a_video_that_is_not_there(analysed: Path, name: str):
    raw = asdict(example_analysis(analysed))
    raw["failures"]["videos"][0]["file"] = name
    (analysed / "analysis" / "analysis.json").write_text(json.dumps(raw), encoding="utf-8")
    page = page_of(analysed)
    assert "What practice changed" in page.text
    assert "<b>" not in page.tags


def test_a_picture_that_leads_out_of_the_folder(analysed: Path, tmp_path: Path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    picture = analysed / "analysis" / "coverage.png"
    picture.unlink()
    picture.symlink_to(secret)
    assert "link that leads out" in page_of(analysed).text


def table(**columns: list[float]) -> Table:
    rows = len(next(iter(columns.values())))
    named = {name.replace("__", "/"): np.array(values) for name, values in columns.items()}
    return Table(np.arange(1, rows + 1), named)


def test_levels_that_open_are_changes():
    changes = curriculum_changes(table(curriculum__level=[1, 1, 2, np.nan, 2, 3]))
    assert [(c.iteration, c.what) for c in changes] == [
        (3, "level 2 opened"),
        (6, "level 3 opened"),
    ]


def test_weights_that_turn_are_changes():
    p = [0.5, 0.52, 0.58, 0.62, 0.62]
    changes = curriculum_changes(table(curriculum__p__a=p, curriculum__p__b=[1 - x for x in p]))
    assert [(c.iteration, c.what) for c in changes] == [(4, "more a, less b")]
    assert curriculum_changes(table(other=[1.0, 2.0])) == ()


def test_plateaus_beside_the_curriculum(run: Path):
    rate = [0.2 + 0.02 * min(i, 20) for i in range(60)]
    lines = [
        {
            "iteration": i + 1,
            "rollout/success_rate": rate[i],
            "rollout/episode_length": 15 - 5 * rate[i],
            "curriculum/level": 1 + (i >= 50),
        }
        for i in range(60)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    found = lengths_of(read_run(run), 15, 0.05)
    assert found is not None
    rates = [plateau for plateau in found.plateaus if plateau.measure == "success rate"]
    (still,) = [plateau for plateau in rates if plateau.last == 60]
    assert 17 <= still.first <= 22
    assert still.changes_within == (51,)
    assert still.next_change is None
    assert found.first > found.last
    assert {plateau.measure for plateau in found.plateaus} == {"success rate", "episode length"}
