"""The whole job on one real task, as short as it can be: every step leaves its folder, none is done twice."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vla_rl.config import UserError
from vla_rl.config.quickstart import QuickstartConfig
from vla_rl.recipes.presets import PRESETS, preset
from vla_rl.recipes.quickstart import quickstart
from vla_rl.report.page.write import write_report
from vla_rl.runtime.locate import locate_policy


@pytest.mark.sim
@pytest.mark.slow
def test_quickstart_from_nothing_to_a_report_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usual = preset("metaworld-mt1")
    few = replace(usual.ppo, minibatch=16, critic_warmup=1)
    small = replace(
        usual,
        env=replace(usual.env, num_envs=4, horizon=12),
        rollout=replace(usual.rollout, turns=4),
        ppo=few,
    )
    monkeypatch.setitem(PRESETS, "metaworld-mt1", small)
    out = tmp_path / "quickstart"
    config = QuickstartConfig(
        out=str(out),
        preset="metaworld-mt1",
        minutes=0.01,
        demos_per_task=1,
        sft_epochs=2,
        episodes_per_task=2,
    )
    report = quickstart(config)
    assert report is not None
    page = report.read_text()
    assert report == out / "report.html"
    assert "drawer-open" in page
    for result in ("before-greedy", "before-sampled", "after-greedy", "after-sampled"):
        assert (
            json.loads((out / "ppo" / "eval" / f"{result}.json").read_text())["overall"]["episodes"]
            == 2
        )
    shown = [
        {
            (v["task"], v["initial_state"])
            for v in json.loads((out / "ppo/eval/videos" / when / "index.json").read_text())
        }
        for when in ("before", "after")
    ]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 2
    metrics = out / "ppo" / "metrics.jsonl"
    lines = metrics.read_text()
    assert (out / "sft" / "policy" / "model.safetensors").is_file()

    quickstart(config)
    assert metrics.read_text() == lines, "a finished run was played again"

    # an interruption after the training, before the evaluation was complete: only that is done again
    (out / "ppo" / "eval" / "after-sampled.json").unlink()
    quickstart(config)
    assert metrics.read_text() == lines
    assert (out / "ppo" / "eval" / "after-sampled.json").is_file()

    # its folder stands for the training run in it, wherever a run is asked for
    assert locate_policy(out) == locate_policy(out / "ppo")
    assert "<h1>quickstart</h1>" in write_report(out, tmp_path / "again.html").read_text()

    # more minutes go on where it stopped, and are evaluated; other settings do not mix
    with pytest.raises(UserError, match=r"--demos-per-task 1.*--force"):
        quickstart(replace(config, demos_per_task=2))
    more = json.loads(lines.splitlines()[-1])["total/train_seconds"] / 60 + 0.01
    quickstart(replace(config, minutes=more))
    assert metrics.read_text().startswith(lines)
    assert len(metrics.read_text()) > len(lines)
    assert json.loads((out / "ppo" / "config.json").read_text())["schedule"]["minutes"] == more


def test_a_quickstart_in_a_place_that_refuses_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*choose another folder"):
        quickstart(QuickstartConfig(out=str(tmp_path / "file" / "quickstart")))


def test_force_throws_away_quickstarts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_rl.recipes.quickstart._run_steps", lambda config, base, out: out)
    thesis = tmp_path / "home" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("three years")
    with pytest.raises(UserError, match="holds something, but no quickstart"):
        quickstart(QuickstartConfig(out=str(thesis.parent), force=True))
    assert thesis.read_text() == "three years"

    mine = QuickstartConfig(out=str(tmp_path / "mine"))
    quickstart(mine)
    (tmp_path / "mine" / "demos").mkdir()
    quickstart(replace(mine, force=True, demos_per_task=1))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["quickstart.json"]
    (tmp_path / "mine" / "notes.txt").write_text("of the user")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "mine" / "demos").mkdir()
    quickstart(replace(mine, out=str(tmp_path / "link"), force=True))
    assert not (tmp_path / "mine" / "demos").exists()
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_a_folder_of_somebody_else_never_becomes_a_quickstart(tmp_path: Path) -> None:
    mine = tmp_path / "demos" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("x")
    for force in (False, True):
        with pytest.raises(
            UserError, match=r"demos, but no quickstart|holds something, but no quick"
        ):
            quickstart(QuickstartConfig(out=str(tmp_path), preset="toy", force=force))
    assert [path.name for path in tmp_path.iterdir()] == ["demos"]
    assert mine.read_text() == "x"


@pytest.mark.parametrize(("name", "value"), [("minutes", "ten"), ("episodes", [1]), ("seed", -1)])
def test_a_damaged_request_is_named(
    tmp_path: Path, name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla_rl.recipes.quickstart._run_steps", lambda config, base, out: out)
    config = QuickstartConfig(out=str(tmp_path), preset="toy")
    quickstart(config)
    file = tmp_path / "quickstart.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(UserError, match=rf"quickstart\.json.*{name}"):
        quickstart(config)
