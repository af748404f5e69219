"""An exception that comes again whenever its episode is played is told at once; a worker's last words are heard."""

from __future__ import annotations

import pytest
from faulty_envs import DEFECT, USER_ERROR, make_faulty_envs, order

from vla_rl.config import EnvConfig, UserError
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.types import EpisodeSpec

CONFIG = EnvConfig(
    image_size=11, action_repeat=1, action_chunk=1, horizon=8, num_envs=3, num_workers=1
)
START = EpisodeSpec("chain", 0)
MOVE = order(0.0)


def started() -> ProcessVectorEnv:
    """Every slot at the start of an episode."""
    envs = ProcessVectorEnv(CONFIG, make_faulty_envs)
    envs.post_reset([0, 1, 2], [START] * 3)
    envs.wait([0, 1, 2])
    return envs


def test_an_error_that_comes_again_is_not_retried():
    """It is told with its place; the episode is played once more to find out, in the same process."""
    envs = started()
    with envs:
        envs.post_step([0], MOVE)
        envs.wait([0])
        envs.post_step([0], order(DEFECT))
        with pytest.raises(UserError, match="the gearbox has lost its teeth") as error:
            envs.wait([0])
        assert envs.infrastructure_errors == 0
    assert "raised ValueError in an episode of 'chain' from initial state 0" in str(error.value)
    assert "faulty_envs.py:" in str(error.value)


def test_the_last_words_of_a_worker_are_heard_by_who_gives_it_more_work():
    envs = started()
    with envs:
        worker = envs._workers[0]
        envs.post_step([0], order(USER_ERROR))
        worker._child._process.wait()  # it has said so and is gone
        with pytest.raises(UserError, match="please install the gearbox"):
            envs.post_step([2], MOVE)
        assert envs.infrastructure_errors == 0
