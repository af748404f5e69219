"""An environment of somebody else goes through every command, as docs/your-simulator.md says it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from vla_rl.cli import main

pytest.importorskip("gymnasium")

PAGE = Path(__file__).parents[2] / "docs" / "your-simulator.md"
TINY = {
    "check-env": "",
    "demos": "--episodes-per-task 4 --env.image-size 32 --env.num-workers 1",
    "sft": "--epochs 1",
    "train": "--schedule.iterations 1 --env.image-size 32 --env.num-envs 2 --env.num-workers 1 --rollout.turns 8 "
    "--ppo.minibatch 8 --eval.episodes-per-task 2 --eval.videos 0",
    "eval": "--episodes-per-task 2 --workers 1 --videos 0",
    "report": "",
}
"""What makes each command of the page small."""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder of the user's with the page's environment, where commands are typed."""
    text = PAGE.read_text(encoding="utf-8")
    (tmp_path / "slider.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield text
    sys.modules.pop("slider", None)


def test_the_page_from_an_environment_to_a_report(elsewhere: str, capsys) -> None:
    block = re.findall(r"```text\n(vla-rl check-env.*?)```", elsewhere, re.DOTALL)[0]
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    assert [words[0] for words in commands] == list(TINY)
    for words in commands:
        code = main([*words, *shlex.split(TINY[words[0]])])
        assert code == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "instruction  'move the carriage to the mark'" in said
    assert "snapshots    exact, by playing an episode again from its seed" in said
    result = json.loads(Path("runs/practice/result.json").read_text())
    assert result["tasks"]["Slider-v0"]["episodes"] == 2
    assert "Slider-v0" in Path("runs/practice/report.html").read_text()
