"""Reward models, labels and trajectories from outside: old folders load, damage is one UserError, never a traceback."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from builders.trajectories import TASKS, episodes, trajectory
from vla_rl.config import LabelConfig, UserError
from vla_rl.rewards.process.label_files import load_labels, save_labels
from vla_rl.rewards.process.labels import label
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.robot_signals import robot_signals
from vla_rl.rewards.process.splits import read_split, split_episodes, split_of, write_split
from vla_rl.rewards.trajectory_files import load_trajectories, save_trajectories

# pytest finds modules beside a test file alone
sys.path.append(str(Path(__file__).parents[1]))
from damage import (
    JsonDamage,
    TableDamage,
    byte_damage,
    changed,
    few,
    json_damage,
    load_or_user_error,
    table_damage,
)

OLD = Path(__file__).parents[1] / "fixtures" / "old_runs" / "reward"
WORDS = list(TASKS.values())
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one, written by the code that reads it."""
    old = load_reward_model(OLD, "cpu")
    folder = tmp_path_factory.mktemp("reward") / "reward_model"
    old.save(folder)
    return folder


# -- earlier versions ------------------------------------------------------------------------------


def test_a_reward_model_that_was_called_a_judge_still_loads(reward_model: Path) -> None:
    old = load_reward_model(OLD, "cpu")
    assert [p.name for p in OLD.iterdir() if p.is_dir()] == ["judge"]
    odds = old.log_odds(IMAGES, WORDS)
    np.testing.assert_array_equal(
        load_reward_model(OLD / "judge", "cpu").log_odds(IMAGES, WORDS), odds
    )
    # written again it has its present name, and answers alike
    assert (reward_model / "reward_model.json").is_file()
    assert not (reward_model / "judge.json").exists()
    again = load_reward_model(reward_model.parent, "cpu")
    np.testing.assert_array_equal(again.log_odds(IMAGES, WORDS), odds)


def test_the_split_of_an_earlier_version_is_read() -> None:
    found = read_split(OLD)
    assert found is not None
    assert [entry[0] for side, entry in found.entries if side == "validation"] == [0, 3]


def test_trajectories_whose_turns_were_called_decisions_are_read(tmp_path: Path) -> None:
    folder = save_trajectories(tmp_path / "play", [replace(trajectory(0, True), turn_seconds=0.4)])
    path = folder / "meta" / "trajectories.json"
    stored = json.loads(path.read_text())
    stored["decision_seconds"] = stored.pop("turn_seconds")
    path.write_text(json.dumps(stored))
    assert load_trajectories(folder)[0].turn_seconds == 0.4


# -- reward models ---------------------------------------------------------------------------------


def test_a_folder_that_is_no_reward_model_is_refused(reward_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it does not exist"):
        load_reward_model(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no reward_model\.json in it"):
        load_reward_model(tmp_path)
    folder = Path(shutil.copytree(reward_model, tmp_path / "copy"))
    path = folder / "reward_model.json"
    stored = json.loads(path.read_text())
    for change, message in (
        ({"format": 99}, "format: expected 1, got 99"),
        ({"history": 0}, "history: expected a number of at least 1"),
        ({"prompt": "{instruction} {x.__class__}"}, "no other braces"),
        ({"prompt": "done?"}, "a text with {instruction} in it"),
        ({"action_chunk": 2}, "action_size"),
        ({"image_size": 32}, "image_size"),
        ({"positive_answer": "a long answer"}, "expected one: choose a single word"),
    ):
        path.write_text(json.dumps(stored | change))
        with pytest.raises(UserError, match=message.replace("{", r"\{")):
            load_reward_model(folder, "cpu")


def test_weights_that_are_no_numbers_are_refused(reward_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reward_model, tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    for value in (float("nan"), float("inf")):
        damaged = tensors | {name: torch.full_like(tensors[name], value)}
        save_file(damaged, folder / "model.safetensors")
        with pytest.raises(UserError, match="NaN or infinite"):
            load_reward_model(folder, "cpu")


def test_a_description_of_a_giant_is_refused_before_it_is_built(
    reward_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(reward_model, tmp_path / "copy"))
    path = folder / "model.json"
    stored = json.loads(path.read_text())
    for part, field, value in (("language", "layers", 10**6), ("dino", "depth", 10**6)):
        giant = stored | {part: stored[part] | {field: value}}
        path.write_text(json.dumps(giant))
        with pytest.raises(UserError, match=r"model\.json"):
            load_reward_model(folder, "cpu")


def asked(folder: Path) -> np.ndarray | None:
    """The answers of a damaged reward model, if it loads."""
    found = load_or_user_error(lambda: load_reward_model(folder, "cpu"), folder)
    if found is None:
        return None
    size, history = found.description.image_size or 16, found.description.history
    images = np.zeros((2, history, size, size, 3), np.uint8)
    chunk, action = found.description.action_chunk, found.description.action_size
    actions = np.zeros((2, chunk, action), np.float32) if chunk else None
    try:
        return found.log_odds(images, WORDS, actions)
    except UserError:  # a tokenizer that does not belong to the model
        return None


@few
@given(damage=json_damage, name=st.sampled_from(["reward_model.json", "model.json"]))
def test_a_damaged_description_never_ends_in_a_traceback(
    reward_model: Path, damage: JsonDamage, name: str
) -> None:
    path = reward_model / name
    with changed(path, damage.of(json.loads(path.read_text()))):
        odds = asked(reward_model)
    assert odds is None or np.isfinite(odds).all()


@few
@given(
    damage=byte_damage,
    name=st.sampled_from(["model.safetensors", "tokenizer.json", "reward_model.json"]),
)
def test_damaged_bytes_never_end_in_a_traceback(reward_model: Path, damage, name: str) -> None:
    path = reward_model / name
    with changed(path, damage.of(path.read_bytes())):
        asked(reward_model)


# -- splits, labels, trajectories ------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three episodes, its labels, and a run folder with its split."""
    folder = tmp_path_factory.mktemp("stored")
    made = episodes(2, size=16)[:3]
    save_trajectories(folder / "play", made)
    config = LabelConfig()
    labels = [label(t, config, robot_signals(t.robot)) for t in made]
    save_labels(folder / "labels", made, labels, config, "play")
    (folder / "run").mkdir()
    split = split_episodes(made, 0.4, (), np.random.default_rng(0))
    write_split(folder / "run", split, made, None)
    return folder


@few
@given(damage=json_damage)
def test_a_damaged_split_is_one_error(stored: Path, damage: JsonDamage) -> None:
    path, made = stored / "run" / "split.json", episodes(2, size=16)[:3]
    with changed(path, damage.of(json.loads(path.read_text()))):
        split = load_or_user_error(lambda: split_of(stored / "run", made), stored / "run")
        parent = load_or_user_error(lambda: read_split(stored / "run"), stored / "run")
    if split is not None:
        rows = np.concatenate([split.training, split.validation, split.held_out])
        assert sorted(rows.tolist()) == [0, 1, 2]
    if parent is not None:
        with contextlib.suppress(UserError):
            split_episodes(made, 0.4, (), np.random.default_rng(1), parent)


@few
@given(damage=json_damage)
def test_a_damaged_summary_of_labels_is_one_error(stored: Path, damage: JsonDamage) -> None:
    path = stored / "labels" / "labels.json"
    with changed(path, damage.of(json.loads(path.read_text()))):
        load_or_user_error(lambda: load_labels(stored / "labels"), stored / "labels")


@few
@given(damage=table_damage)
def test_damaged_labels_are_one_error_or_sound(stored: Path, damage: TableDamage) -> None:
    path = stored / "labels" / "labels.parquet"
    before = path.read_bytes()
    table = pq.read_table(path)
    try:
        pq.write_table(damage.of(table), path)
        found = load_or_user_error(lambda: load_labels(stored / "labels"), stored / "labels")
    finally:
        path.write_bytes(before)
    for labels in found[1] if found else ():
        assert np.isfinite(labels.progress).all()
        assert len(labels.positive) == len(labels.known) == len(labels.progress) > 0


@few
@given(damage=json_damage)
def test_damaged_details_of_trajectories_are_one_error_or_sound(
    stored: Path, damage: JsonDamage
) -> None:
    path = stored / "play" / "meta" / "trajectories.json"
    with changed(path, damage.of(json.loads(path.read_text()))):
        found = load_or_user_error(lambda: load_trajectories(stored / "play"), stored / "play")
    for made in found or ():
        assert 0 < made.turn_seconds < 1e4
        assert made.source in ("expert", "policy")
