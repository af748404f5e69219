"""`vla-rl analyse` on the toy benchmark, which tells nothing of its objects; and what it is given that does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vla_rl.cli import main
from vla_rl.config import PolicyConfig, UserError
from vla_rl.config.analysis import AnalysisConfig
from vla_rl.evaluation.failures import MEANING
from vla_rl.recipes.analyse import analyse
from vla_rl.recipes.presets import preset
from vla_rl.recipes.train_ppo import train
from vla_rl.report.analysis.failures import read_labels
from vla_rl.report.analysis.record import Analysis, read_analysis
from vla_rl.report.page.write import write_report


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates that started from random weights, and was never evaluated."""
    base = preset("toy")
    return train(
        replace(
            base,
            env=replace(base.env, num_envs=8),
            policy=PolicyConfig(scratch="mini", device="cpu"),
            schedule=replace(base.schedule, iterations=2, episodes=0),
            rollout=replace(base.rollout, turns=4),
            ppo=replace(base.ppo, minibatch=16),
            eval=replace(base.eval, episodes_per_task=1),
            run=replace(
                base.run, root=str(tmp_path_factory.mktemp("runs")), name="run", save_every=1
            ),
        )
    )


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def analysis_of(run: Path, **settings) -> Analysis:
    settings = {"episodes_per_task": 2, "videos": False} | settings
    page = analyse(AnalysisConfig(run, **settings))
    assert page == run / "analysis" / "analysis.md"
    found = read_analysis(run)
    assert found is not None
    return found


def test_against_an_earlier_checkpoint(run: Path):
    start = run / "checkpoints" / "iteration-000001" / "policy"
    labels = run / "labels.csv"
    labels.write_text("strip,label\n000.png,not told\n001.png,never touched\n", encoding="utf-8")
    found = analysis_of(run, against=str(start), strips=1, labels=labels)
    assert found.before == str(start)
    assert found.failures is not None
    assert [stage.stage for stage in found.failures.stages] == ["before", "after"]
    # the toy world tells nothing, and that is said
    assert {episode.kind for episode in found.failures.episodes} == {"not told"}
    assert set(found.failures.not_told) == set(MEANING) - {"not told"}
    assert (run / "analysis" / "strips" / "000.png").is_file()
    assert not (run / "analysis" / "strips" / "001.png").exists()
    index = json.loads((run / "analysis" / "strips" / "index.json").read_text(encoding="utf-8"))
    assert [set(row) for row in index] == [{"strip", "stage", "task", "initial_state"}]
    assert found.agreement is not None
    assert found.agreement.agreed == pytest.approx(0.5)
    assert found.coverage is not None
    own, same = found.coverage.views
    assert (own.states, same.states) == ("own", "same")
    assert own.before is not None
    assert same.before is not None
    assert same.before.samples == same.after.samples == own.before.samples + own.after.samples
    for view in (own, same):
        assert view.difference is not None
        assert view.difference.low <= view.difference.value <= view.difference.high
        assert 0 < view.after.volume.value < 1.5
        assert len(view.pairs) == 6
    # random weights choose among all actions
    assert own.after.volume.value > 0.2
    assert found.lengths is not None
    assert found.lengths.iterations == 2
    page = write_report(run).read_text(encoding="utf-8")
    assert "Action coverage" in page
    again = analysis_of(run, against=str(start), labels=labels)
    assert replace(again, notes=()) == replace(found, notes=())


def test_alone_and_from_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["analyse", str(run), "--episodes-per-task", "1", "--no-videos"]) == 0
    said = capsys.readouterr().out
    assert "started from random weights" in said
    found = read_analysis(run)
    assert found is not None
    assert found.before is None
    assert found.coverage is not None
    assert [view.states for view in found.coverage.views] == ["own"]


def test_a_run_without_a_checkpoint(run: Path):
    shutil.rmtree(run / "checkpoints")
    found = analysis_of(run)
    assert found.failures is None
    assert found.coverage is None
    assert found.lengths is not None
    assert "no checkpoint yet" in " ".join(found.notes)


def test_a_start_that_is_not_there_any_more(run: Path):
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["policy"] |= {"checkpoint": "runs/gone/policy", "scratch": ""}
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = analysis_of(run)
    assert found.before is None
    assert any("runs/gone/policy" in note and "--against" in note for note in found.notes)


def test_a_run_without_metrics(run: Path):
    (run / "metrics.jsonl").unlink()
    found = analysis_of(run, episodes_per_task=1)
    assert found.lengths is None
    assert any("metrics.jsonl" in note for note in found.notes)


@pytest.mark.parametrize("against", ["nowhere", "."])
def test_a_policy_that_is_none(run: Path, against: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run.parent)
    with pytest.raises(UserError):
        analyse(AnalysisConfig(run, against=against))
    assert not (run / "analysis").exists()


def test_a_policy_against_itself(run: Path):
    for same in (run, run / "checkpoints" / "iteration-000002"):
        with pytest.raises(UserError, match=r"is the policy that .* ends with"):
            analyse(AnalysisConfig(run, against=str(same)))


def test_a_policy_of_another_suite(run: Path, tmp_path: Path):
    other = tmp_path / "sft"
    shutil.copytree(run / "checkpoints" / "iteration-000001" / "policy", other / "policy")
    env = json.loads((run / "config.json").read_text(encoding="utf-8"))["env"]
    (other / "environment.json").write_text(json.dumps(env | {"suite": "mt5"}), encoding="utf-8")
    with pytest.raises(
        UserError, match="expected a policy of toy, the run's suite, got one of mt5"
    ):
        analyse(AnalysisConfig(run, against=str(other)))


def test_no_run_at_all(tmp_path: Path):
    with pytest.raises(UserError, match=r"no config\.json"):
        analyse(AnalysisConfig(tmp_path))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "columns strip and label"),
        ("a,b\n1,2\n", "columns strip and label"),
        ("strip,label\n", "a label or more"),
        ("strip,label\n000.png,dropt\n", "Did you mean 'dropped'"),
        ("strip,label\n000.png,dropped\n000.png,dropped\n", "each strip once"),
        ("strip,label\n000.png\n", "line 2"),
        ("strip,label\n\0,\0\n", "line 2"),
        ('strip,label\n"' + "x" * 200_000 + '",dropped\n', "CSV"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, text: str, match: str):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=match):
        read_labels(path)


def test_labels_of_other_strips(run: Path):
    path = run / "labels.csv"
    path.write_text("strip,label\n999.png,dropped\n", encoding="utf-8")
    with pytest.raises(UserError, match="one of the"):
        analysis_of(run, episodes_per_task=1, labels=path)
    with pytest.raises(UserError, match="missing"):
        analysis_of(run, episodes_per_task=1, labels=run / "none.csv")
