"""What `--help` and `--print-config` say of a command."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from vla_rl.cli import COMMANDS, main
from vla_rl.cli.arguments import EvalArguments
from vla_rl.cli.fields import options_of
from vla_rl.config import LoraConfig, TrainConfig
from vla_rl.config.bounds import bounds_in_words, declared
from vla_rl.config.serialize import from_json
from vla_rl.recipes.presets import PRESETS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option_with_an_example(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as leaving:
        main([*command.split(), "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: vla-rl {command}" in text
    assert f"Examples:\n  vla-rl {command}" in text
    assert max(map(len, text.splitlines())) <= 100
    cls = COMMANDS[command].config
    words = " ".join(text.replace("│", " ").replace("--no-", "--").split())
    for option in options_of(cls, flat=cls is EvalArguments):
        if option.field != "lora":  # shown where there are adapters
            assert option.name.replace("no-", "", 1) in words.replace(".no-", ".")
        bounds = bounds_in_words(declared(option.owner)[option.field])
        assert not bounds or f"[{bounds}]" in words


def test_help_shows_the_bounds_beside_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sft", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--epochs INT Passes over the training episodes. [at least 1] (default: 60)" in text
    assert "[at least 0 and below 1] (default: 0.1)" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_all_settings_are_printed_as_json_and_nothing_is_done(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    cls = COMMANDS[command].config
    missing = dataclasses.MISSING
    names = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is missing]
    names = ["owner/name" if name == "repository" else name for name in names]
    with pytest.raises(SystemExit) as leaving:
        main([*command.split(), *names, "--print-config"])
    assert leaving.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    settings = json.loads(printed.out)
    assert settings.keys() == {field.name for field in dataclasses.fields(cls)}
    # several of a kind are a list
    given = {"owner/name": "repository"}
    told = [settings[given.get(name, name)] for name in names if name != "runs"]
    assert told == [name for name in names if name != "runs"]
    assert settings.get("runs", ["runs"]) == ["runs"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_printed_is_the_preset_with_the_options_and_can_be_read_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "metaworld-mt10", "--print-config", "--ppo.gamma=0.9", "--policy.lora"])
    config = from_json(TrainConfig, json.loads(capsys.readouterr().out))
    base = PRESETS["metaworld-mt10"]
    assert config == replace(
        base,
        ppo=replace(base.ppo, gamma=0.9),
        policy=replace(base.policy, lora=LoraConfig()),
    )


def test_the_help_of_a_preset_shows_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for name in ("metaworld-mt5", "metaworld-mt5-paper"):
        with pytest.raises(SystemExit):
            main(["train", name, "--help"])
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        found = re.search(r"--rollout\.temperature FLOAT .*?\(default: ([\d.]+)\)", text)
        assert found is not None
        shown[name] = float(found[1])
    assert shown == {
        "metaworld-mt5": PRESETS["metaworld-mt5"].rollout.temperature,
        "metaworld-mt5-paper": 1.5,
    }
