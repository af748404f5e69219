"""A run's saved configuration is read with suspicion: whatever is wrong with the file is one line that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vla_rl.config import ConfigError, EnvConfig, SFTConfig, TrainConfig, UserError
from vla_rl.config.serialize import from_json, to_json
from vla_rl.runtime.files import write_json
from vla_rl.runtime.locate import locate_policy
from vla_rl.runtime.run_folder import ENVIRONMENT_OF_RUN, Run, read_config

DAMAGE: list[tuple[bytes, str]] = [
    (b"", "got an empty file"),
    (b"\xff\xfe{\x00", "JSON in UTF-8"),
    (b"3", "expected an object, got 3"),
    (b"[1, 2]", "expected an object, got [1, 2]"),
    (b"null", "expected an object, got null"),
    (b'{"env":', "valid JSON"),
    (b"{}", "missing"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A training run, and in it a policy as far as finding it goes."""
    with Run.create(tmp_path, "first", TrainConfig(env=EnvConfig(suite="mt10")), []) as started:
        write_json(started.folder / "policy" / "config.json", {})
        return started.folder


def located(folder: Path) -> EnvConfig | None:
    return locate_policy(folder / "policy")[1]


def read(folder: Path) -> TrainConfig:
    return read_config(folder, TrainConfig)


@pytest.mark.parametrize("reader", [located, read])
@pytest.mark.parametrize(("content", "said"), DAMAGE)
def test_a_damaged_configuration_is_named(
    run: Path, reader: Callable[[Path], Any], content: bytes, said: str
) -> None:
    (run / "config.json").write_bytes(content)
    with pytest.raises(UserError) as caught:
        reader(run)
    assert str(caught.value).startswith(f"{run / 'config.json'}: ")
    assert said in str(caught.value) or (
        content == b"{}" and "got an empty object" in str(caught.value)
    )


@pytest.mark.parametrize(("content", "said"), [*DAMAGE, (b'{"horizon": 15}', "suite: missing")])
def test_a_damaged_environment_is_named(run: Path, content: bytes, said: str) -> None:
    (run / ENVIRONMENT_OF_RUN).write_bytes(content)
    with pytest.raises(UserError) as caught:
        located(run)
    assert str(caught.value).startswith(f"{run / ENVIRONMENT_OF_RUN}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "env.suite: missing"),
        ([], "env: expected an object with fields, got []"),
        ({"suite": "mt5", "horizn": 3}, "env.horizn: no such field. Did you mean 'horizon'?"),
        (
            {"suite": "mt5", "horizon": -1},
            "env.horizon: expected a whole number from 0 to 1000000, got -1",
        ),
        ({"suite": "mt5", "horizon": 2**70}, "env.horizon: expected"),
        (
            {"suite": "mt5", "step_timeout": float("inf")},
            "env.step_timeout: expected a finite number",
        ),
        ({"suite": None}, "env.suite: expected a text, got None"),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_its_file(run: Path, env: Any, said: str) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"env": env}))
    for reader in (located, read):
        with pytest.raises(UserError) as caught:
            reader(run)
        assert str(caught.value).startswith(f"{path}: ")
        assert said in str(caught.value)


def test_a_sound_one_is_read(run: Path) -> None:
    assert read(run).env.suite == "mt10"
    env = located(run)
    assert env is not None
    assert env.suite == "mt10"


def test_a_fine_tuning_has_no_environment_of_its_own(tmp_path: Path) -> None:
    with Run.create(tmp_path, "sft", SFTConfig(), []) as started:
        write_json(started.folder / "policy" / "config.json", {})
    assert located(started.folder) is None


def test_what_is_not_from_a_file_may_leave_out_what_it_likes() -> None:
    assert from_json(TrainConfig, {}) == TrainConfig()
    with pytest.raises(
        ConfigError, match=r"^here: env: missing, and every saved configuration has it"
    ):
        from_json(TrainConfig, {}, source="here")
    assert from_json(TrainConfig, to_json(TrainConfig()), source="here") == TrainConfig()
