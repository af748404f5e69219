"""Datasets from outside are hostile until checked: whatever is wrong with a file, it is one clear UserError."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from small_dataset import (
    DATA,
    EPISODES,
    INFO,
    PNG_CAMERA,
    STATS,
    TASKS,
    VIDEO,
    VIDEO_CAMERA,
    write_small_dataset,
)  # fmt: skip

from damage import (
    ByteDamage,
    JsonDamage,
    TableDamage,
    byte_damage,
    changed,
    few,
    json_damage,
    load_or_user_error,
    table_damage,
)
from vla_rl.data.demonstrations import Demonstrations, load_demonstrations
from vla_rl.data.lerobot import LeRobotReader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_dataset(tmp_path_factory.mktemp("hostile") / "d")


def load(folder: Path) -> tuple[Demonstrations, Demonstrations]:
    """Everything that a dataset holds, both cameras and the statistics included."""
    reader = LeRobotReader(folder)
    _ = reader.stats, [reader.episode(i) for i in range(len(reader.episodes))]
    cameras = PNG_CAMERA, VIDEO_CAMERA
    png, video = (load_demonstrations(folder, camera=name) for name in cameras)
    return png, video


def same(one: Demonstrations, two: Demonstrations, *, images: bool = True) -> None:
    for field in ("proprio", "actions", "episode_ids", "task_ids"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    if images:
        np.testing.assert_array_equal(one.images, two.images)


def sound(demos: Demonstrations) -> None:
    """What may differ from what was written is still whole: shapes, finite numbers, instructions that exist."""
    frames = len(demos)
    assert demos.images.shape == (frames, demos.image_size, demos.image_size, 3)
    assert np.isfinite(demos.actions).all()
    assert np.isfinite(demos.proprio).all()
    assert (demos.action_low <= demos.action_high).all()
    assert demos.task_ids.max() < len(demos.instructions)
    assert demos.task_ids.min() >= 0


@pytest.mark.parametrize("name", [INFO, STATS])
def test_damaged_json_is_a_user_error_or_changes_nothing(dataset: Path, name: str):
    original, whole = json.loads((dataset / name).read_text()), load(dataset)

    @few
    @given(json_damage)
    def check(damage: JsonDamage) -> None:
        with changed(dataset / name, damage.of(original)):
            loaded = load_or_user_error(lambda: load(dataset), dataset)
        for one, two in zip(loaded or (), whole, strict=False):
            same(one, two)

    check()


@pytest.mark.parametrize("name", [TASKS, EPISODES, DATA])
def test_a_damaged_table_is_a_user_error_or_loads_whole(dataset: Path, name: str):
    original = pq.read_table(dataset / name)

    @few
    @given(table_damage)
    def check(damage: TableDamage) -> None:
        pq.write_table(damage.of(original), dataset.parent / "damaged.parquet")
        with changed(dataset / name, (dataset.parent / "damaged.parquet").read_bytes()):
            loaded = load_or_user_error(lambda: load(dataset), dataset)
        for demos in loaded or ():
            sound(demos)

    check()


@pytest.mark.parametrize("name", [INFO, STATS, TASKS, EPISODES, DATA, VIDEO])
def test_damaged_bytes_are_a_user_error_or_change_nothing(dataset: Path, name: str):
    """Our tables carry checksums; videos do not, and show what they show."""
    original, whole = (dataset / name).read_bytes(), load(dataset)

    @few
    @given(byte_damage)
    def check(damage: ByteDamage) -> None:
        with changed(dataset / name, damage.of(original)):
            loaded = load_or_user_error(lambda: load(dataset), dataset)
        for one, two in zip(loaded or (), whole, strict=False):
            same(one, two, images=name != VIDEO)
            sound(one)

    check()


def test_the_undamaged_dataset_loads(dataset: Path):
    for demos in load(dataset):
        sound(demos)
        assert len(demos) == 12
