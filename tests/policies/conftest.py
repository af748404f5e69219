"""Fixtures of the policy tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builders.policies import GOLDEN, make_oft_policy, make_policy, sharpen
from vla_rl.policies import OpenVLAPolicy


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "reference.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def golden_actions() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "actions.npz") as file:
        return dict(file)


@pytest.fixture(params=["separate", "shared", "parallel"])
def policy(request: pytest.FixtureRequest) -> OpenVLAPolicy:
    """Both critics, and a policy that decides all tokens of a turn at once."""
    if request.param == "parallel":
        return sharpen(make_oft_policy("shared"))
    return sharpen(make_policy(request.param))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    make_policy(seed=3).save(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A fresh copy of a saved policy, to be damaged."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(saved, tmp_path / name))

    return copy
