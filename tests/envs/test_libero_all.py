"""Every task of LIBERO's four suites, and LIBERO-PRO's, resets, steps and renders. Minutes: `pytest -m libero_all`."""

from __future__ import annotations

import numpy as np
import pytest

from vla_rl.config import EnvConfig
from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.types import EpisodeSpec

pytest.importorskip("libero")
pytestmark = [pytest.mark.sim, pytest.mark.libero_all]

SUITES = ("libero-spatial", "libero-object", "libero-goal", "libero-10")
EVERY = [f"{suite}:{number}" for suite in SUITES for number in range(10)]
PERTURBED = [
    task.replace(":", f"-{kind}:") for task in EVERY for kind in ("object", "swap", "task")
]


def play(suite: str) -> None:
    config = EnvConfig(suite=suite, image_size=64, action_repeat=2, initial_states=50, held_out=10)
    env = LiberoEnv(config)
    images = []
    for initial_state in (0, 49):
        env.reset(EpisodeSpec(env.tasks[0], initial_state))
        images.append(env.render().astype(int))
        assert images[-1].std() > 20
        start = env.proprio()
        up = np.array([[0, 0, 1, 0, 0, 0, -1]] * 3, dtype=np.float32)
        _, terminated, _, steps = env.step(up)
        assert steps == 6 or terminated
        assert np.isfinite(env.proprio()).all()
        assert env.proprio()[2] > start[2] + 0.03 * steps / 6
        assert np.abs(env.render() - images[-1]).max() > 10
    assert np.abs(images[0] - images[1]).max() > 20
    env.close()


@pytest.mark.parametrize("suite", EVERY)
def test_official(suite: str):
    play(suite)


@pytest.mark.parametrize("suite", PERTURBED)
def test_perturbed(suite: str):
    play(suite)
