"""What is pushed loads back to the byte, says what the run says, and takes nothing of the machine along."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.policies import saved_policy
from builders.practised_runs import practised
from vla_rl.config import ConfigError, UserError
from vla_rl.config.push import PushConfig
from vla_rl.data.lerobot import LeRobotReader, LeRobotWriter, vector
from vla_rl.recipes.presets import preset
from vla_rl.recipes.push import push
from vla_rl.runtime.locate import locate_policy

pytest.importorskip("huggingface_hub")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    base = preset("toy")
    config = replace(base, policy=replace(base.policy, checkpoint="openvla/openvla-7b"))
    folder = practised(tmp_path / "runs", "first", config=config)
    saved_policy(folder / "policy")
    info = json.loads((folder / "run.json").read_text())
    info["command"] = ["/srv/me/.venv/bin/vla-rl", "train", "toy", "--run.root=/srv/me/runs"]
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "policy" / "optimizer.bin").write_bytes(b"state")
    (folder / "policy" / ".cache").mkdir()
    (folder / "policy" / ".cache" / "token.json").write_text("{}")
    return folder


def pushed(source: Path, out: Path, **settings: str) -> set[str]:
    push(PushConfig(str(source), "me/first", to_folder=str(out), **settings))  # type: ignore[arg-type]
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_a_policy_is_sent_to_the_byte_with_nothing_beside_it(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = pushed(run, out, license="apache-2.0")
    there = {p.name for p in (run / "policy").iterdir() if p.is_file()} - {"optimizer.bin"}
    assert names == there | {"README.md"}
    for name in there:
        assert (out / name).read_bytes() == (run / "policy" / name).read_bytes()
    assert locate_policy(out)[0] == out
    with pytest.raises(UserError, match="out"):  # it is in use
        pushed(run, out)


def test_the_card_says_what_the_run_says_and_no_path_of_the_machine(
    run: Path, tmp_path: Path
) -> None:
    pushed(run, tmp_path / "out", license="mit")
    text = (tmp_path / "out" / "README.md").read_text()
    result = json.loads((run / "eval" / "after-greedy.json").read_text())["overall"]
    low, high = result["interval"]
    rate, count = result["success_rate"], result["episodes"]
    assert f"{rate:.1%} [{low:.1%}, {high:.1%}] of {count}" in text
    assert "vla-rl train toy --run.root=runs" in text
    assert 'base_model: "openvla/openvla-7b"' in text
    assert 'license: "mit"' in text
    assert "vla-rl eval me/first" in text
    assert "/srv/me" not in text
    assert str(tmp_path) not in text


def test_a_path_is_taken_out_where_loading_does_not_need_it_and_refused_where_it_does(
    run: Path, tmp_path: Path
) -> None:
    extra = run / "policy" / "extra.json"
    extra.write_text(json.dumps({"made_from": "/srv/me/runs/sft", "list": ["~/x/y", "a/b"]}))
    words = {"merges": ["// /", "/home/ me", "/tmp/ x"]}  # pieces of words, not places
    (run / "policy" / "vocab.json").write_text(json.dumps(words))
    pushed(run, tmp_path / "one")
    sent = json.loads((tmp_path / "one" / "extra.json").read_text())
    assert sent == {"made_from": "sft", "list": ["y", "a/b"]}
    assert json.loads((tmp_path / "one" / "vocab.json").read_text()) == words
    extra.write_text(json.dumps({"base_model_name_or_path": "/srv/me/openvla-7b"}))
    with pytest.raises(UserError, match=r"base_model_name_or_path.*--base owner/name"):
        pushed(run, tmp_path / "two")
    assert not (tmp_path / "two").exists()
    pushed(run, tmp_path / "three", base="openvla/openvla-7b")
    sent = json.loads((tmp_path / "three" / "extra.json").read_text())
    assert sent == {"base_model_name_or_path": "openvla/openvla-7b"}


def test_a_link_out_of_the_folder_is_not_followed(run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (run / "policy" / "linked.json").symlink_to(secret)
    with pytest.raises(UserError, match="link to a file outside"):
        pushed(run, tmp_path / "out")


def test_a_dataset_loads_back(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    folder, out = tmp_path / "demos", tmp_path / "out"
    with LeRobotWriter(folder, fps=10, features={"action": vector(2)}, robot_type="x") as writer:
        actions = np.arange(8, dtype=np.float32).reshape(4, 2)
        writer.add_episode({"action": actions}, task="open the drawer")
    shutil.copy(folder / "meta" / "info.json", folder / ".hidden.json")
    names = pushed(folder, out)
    assert ".hidden.json" not in names
    assert "1 episodes, 4 frames at 10" in (out / "README.md").read_text()
    np.testing.assert_array_equal(LeRobotReader(out).column("action"), actions)


def test_what_is_no_source_and_no_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        push(PushConfig(str(tmp_path / "nothing"), "me/first", to_folder=str(tmp_path / "out")))
    with pytest.raises(ConfigError, match="the repository is owner/name"):
        PushConfig("runs/first", "first")


def test_nothing_is_sent_where_the_hub_is_to_be_left_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="--to-folder"):
        push(PushConfig(str(run), "me/first"))
