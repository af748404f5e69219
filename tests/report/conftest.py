from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builders.example_run import make_run


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run folder; tests that change it copy it first."""
    return make_run(tmp_path_factory.mktemp("runs") / "example")


@pytest.fixture
def run(example: Path, tmp_path: Path) -> Path:
    """A copy of the example that a test may change."""
    return shutil.copytree(example, tmp_path / "run")
