"""A dataset of LeRobot's format v3, written once, and a copy of it to damage for each test."""

import shutil
from pathlib import Path

import pytest
from small_dataset import write_small_dataset


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_dataset(tmp_path_factory.mktemp("faults") / "d")


@pytest.fixture
def dataset(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "d"))
