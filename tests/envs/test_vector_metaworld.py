"""The real simulator in worker processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from vla_rl.config import EnvConfig
from vla_rl.envs.metaworld.env import MetaWorldEnv
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.types import EpisodeSpec

pytest.importorskip("metaworld")
pytestmark = pytest.mark.sim

CONFIG = EnvConfig(suite="mt5", image_size=24, num_envs=4, num_workers=2, horizon=3)
SPECS = [EpisodeSpec("drawer-open", 1), EpisodeSpec("window-open", 2), EpisodeSpec("drawer-open", 3),
         EpisodeSpec("window-open", 4)]  # fmt: skip


def actions(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (4, 2, 4)).astype(np.float32)


def played_alone(spec: EpisodeSpec, row: int) -> list[np.ndarray]:
    """The images of the episode in an environment of its own."""
    env = MetaWorldEnv(CONFIG)
    env.reset(spec)
    images = [env.render()]
    for turn in range(3):
        env.step(actions(turn)[row])
        images.append(env.render())
    env.close()
    return images


def test_a_killed_worker_is_replaced_and_the_retried_episode_is_the_same():
    """kill -9 of a worker in mid-episode: its slots come back lost; retried, they play what was to be played."""
    every = range(4)
    with ProcessVectorEnv(CONFIG) as envs:
        envs.post_reset(every, SPECS)
        images = [[image] for image in envs.wait(every).observation.images]
        envs.post_step(every, actions(0))
        result = envs.wait(every)
        assert result.simulator_steps.tolist() == [10] * 4
        for row in (1, 3):
            images[row].append(result.observation.images[row])

        os.kill(envs.worker_pids()[0], signal.SIGKILL)
        envs.post_step(every, actions(1))
        result = envs.wait(every)
        assert result.lost.tolist() == [True, False, True, False]
        assert envs.infrastructure_errors == 1
        for row in (1, 3):
            images[row].append(result.observation.images[row])

        envs.post_reset([0, 2], [SPECS[0], SPECS[2]])
        assert not envs.wait([0, 2]).lost.any()
        for turn in range(3):
            envs.post_step([0, 2], actions(turn)[[0, 2]])
            result = envs.wait([0, 2])
            for row, image in zip((0, 2), result.observation.images, strict=True):
                images[row].append(image)
        assert result.truncated.all()
        envs.post_step([1, 3], actions(2)[[1, 3]])
        for row, image in zip((1, 3), envs.wait([1, 3]).observation.images, strict=True):
            images[row].append(image)
        assert envs.memory_bytes() > 100e6
        for pid in envs.worker_pids():
            assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
    for row, spec in enumerate(SPECS):
        np.testing.assert_array_equal(images[row], played_alone(spec, row), err_msg=str(spec))


def test_an_unknown_camera_is_the_users_mistake():
    from dataclasses import replace

    from vla_rl.config import UserError

    with ProcessVectorEnv(replace(CONFIG, num_envs=1, camera="corner22")) as envs:
        envs.post_reset([0], SPECS[:1])
        with pytest.raises(UserError, match="corner2"):
            envs.wait([0])
        assert envs.infrastructure_errors == 0
