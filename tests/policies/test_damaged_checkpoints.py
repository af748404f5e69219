"""Checkpoints and adapters damaged in any way load, or are refused in one line; the doctor finds what loading does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.checkpoints import CPU, save_adapted, save_exported, save_official, save_own
from builders.policies import INSTRUCTIONS, make_observation
from damage import ByteDamage, JsonDamage, byte_damage, changed, json_damage, load_or_user_error
from vla_rl.config import UserError
from vla_rl.diagnostics.checkpoint import examine_checkpoint
from vla_rl.policies.policy import Policy
from vla_rl.policies.registry import load_policy

OBSERVATION = make_observation(2, texts=INSTRUCTIONS, size=16)
JSON_FILES = [
    ("own", "config.json"), ("own", "dataset_statistics.json"), ("own", "preprocessor_config.json"),
    ("own", "tokenizer.json"), ("own", "model.safetensors.index.json"), ("official", "config.json"),
    ("official", "vision.json"), ("official", "preprocessor_config.json"), ("official", "dataset_statistics.json"),
    ("adapted", "config.json"), ("exported", "adapter_config.json"), ("exported", "vla_rl.json"),
    ("exported", "dataset_statistics.json"),
]  # fmt: skip
FILES = [
    *JSON_FILES,
    ("own", "critic.safetensors"), ("own", "model-00001-of-00002.safetensors"), ("official", "model.safetensors"),
    ("adapted", "adapter_model.safetensors"), ("exported", "adapter_model.safetensors"),
]  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("peft", reason="needs the extra vla-rl[lora]")
    room = tmp_path_factory.mktemp("damaged")
    save_own(room / "base")
    save_own(room / "own", shards=True)
    save_official(room / "official")
    save_adapted(room / "base", room / "adapted")
    save_exported(room / "base", room / "exported")
    return room


def check(room: Path, kind: str) -> Policy | None:
    """Load, or be refused; then the doctor has to find something, too."""
    folder = room / kind
    policy = load_or_user_error(lambda: load_policy(folder, CPU), room)
    if policy is None:
        assert [c for c in examine_checkpoint(str(folder)) if c.status == "fail"]
    return policy


@settings(max_examples=60)
@given(st.sampled_from(JSON_FILES), json_damage)
def test_wrong_values_are_refused_or_harmless(
    room: Path, file: tuple[str, str], damage: JsonDamage
) -> None:
    path = room / "/".join(file)
    with changed(path, damage.of(json.loads(path.read_bytes()))):
        policy = check(room, file[0])
        if policy is not None:
            tokens = policy.act(OBSERVATION, 0.0).tokens
            assert np.isfinite(policy.decode_actions(tokens)).all()


@settings(max_examples=60)
@given(st.sampled_from(FILES), byte_damage)
def test_damaged_bytes_are_refused_or_load(
    room: Path, file: tuple[str, str], damage: ByteDamage
) -> None:
    path = room / "/".join(file)
    with changed(path, damage.of(path.read_bytes())):
        check(room, file[0])


@pytest.mark.parametrize("file", FILES, ids="/".join)
def test_a_file_that_is_missing_empty_or_a_folder(room: Path, file: tuple[str, str]) -> None:
    path = room / "/".join(file)
    content = path.read_bytes()
    with changed(path, b""), pytest.raises(UserError, match=path.name):
        load_policy(room / file[0], CPU)
    optional = ("preprocessor_config.json", "vla_rl.json", "dataset_statistics.json")
    try:
        path.unlink()
        policy = check(room, file[0])
        # without its config.json what a run saves is a folder of adapters in PEFT's format
        assert policy is None or path.name in optional or file == ("adapted", "config.json")
        path.mkdir()
        check(room, file[0])
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(content)
