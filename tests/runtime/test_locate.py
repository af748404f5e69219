"""What a folder is: damaged files of a run are named, and never mean its defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla_rl.cli import main
from vla_rl.config import EnvConfig, TrainConfig, UserError
from vla_rl.config.serialize import to_json
from vla_rl.runtime.checkpoint import write_checkpoint
from vla_rl.runtime.locate import locate_policy


def write_policy(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training run with a checkpoint, as far as finding its policy goes."""
    run = tmp_path / "run"
    folder = run / "checkpoints" / "iteration-000010"
    write_checkpoint(folder, tensors={}, state={}, write_policy=write_policy)
    config = TrainConfig(env=EnvConfig(suite="mt10", horizon=7))
    (run / "config.json").write_text(json.dumps(to_json(config)))
    (run / "run.json").write_text(json.dumps({"config_type": "TrainConfig"}))
    return run


def test_a_run_says_where_it_was_trained(run: Path) -> None:
    _, env = locate_policy(run)
    assert env == EnvConfig(suite="mt10", horizon=7)
    policy = run / "checkpoints" / "iteration-000010" / "policy"
    assert locate_policy(policy) == locate_policy(policy.parent) == (policy, env)


DAMAGED = [
    b"",
    b"\xff\xfe",
    b"3",
    b"[]",
    b"null",
    b"{",
    b"{}",
    b'{"env": null}',
    b'{"env": []}',
    b"[" * 99_999,
]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: content[:12].decode("latin-1"))
def test_a_damaged_configuration_is_named(
    run: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        locate_policy(run)
    for command in (["eval", str(run)], ["export", str(run), "--out", str(run.parent / "out")]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "config.json" in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    "content", [*DAMAGED, b'{"suite": 3}', b'{"suite": "mt5", "horizon": "x"}']
)
def test_a_damaged_environment_of_a_fine_tuning_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    (tmp_path / "environment.json").write_bytes(content)
    with pytest.raises(UserError, match=r"environment\.json"):
        locate_policy(tmp_path)


def test_an_environment_of_an_earlier_version_lacks_later_fields(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    (tmp_path / "environment.json").write_text('{"suite": "mt10"}')
    assert locate_policy(tmp_path) == (tmp_path / "policy", EnvConfig(suite="mt10"))


def test_what_is_no_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openvla").mkdir()
    with pytest.raises(UserError, match=r"does not exist.*There is a folder 'openvla' here"):
        locate_policy(Path("openvla/openvla-7b"))
    with pytest.raises(UserError, match="holds no policy"):
        locate_policy(tmp_path / "openvla")
    with pytest.raises(UserError, match="does not exist"):
        locate_policy(tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        locate_policy(tmp_path / "file")
