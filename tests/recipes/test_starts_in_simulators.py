"""Real simulators put back where their experts have been, from a dataset: to the bit, to the end of the episode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_rl.config import DemosConfig
from vla_rl.data.demonstrations import ACTION, IMAGE, STATE
from vla_rl.data.lerobot import LeRobotReader
from vla_rl.envs.defaults import laptop_env
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.recipes.demos import collect_demos
from vla_rl.rollout.starting import StartingVectorEnv, StartStates
from vla_rl.types import EpisodeSpec, Start

pytestmark = pytest.mark.sim


@pytest.mark.parametrize(
    "suite",
    ["mt1:peg-insert-side", pytest.param("libero-object:0", marks=pytest.mark.slow)],
)
def test_the_rest_of_a_demonstration_is_the_same_to_the_bit(suite: str, tmp_path: Path) -> None:
    """Images, robot, time and success, from several of its states, in a process that has not played it."""
    if suite.startswith("libero"):
        pytest.importorskip("robosuite")
    env = replace(laptop_env(suite), num_workers=1, num_envs=2, image_size=32)
    demos = collect_demos(
        DemosConfig(env=env, out=str(tmp_path / "d"), episodes_per_task=1, snapshots=True)
    )
    alone = replace(env, action_chunk=1, horizon=100)  # one action a turn, as the expert plays
    states, episode = StartStates(str(demos), alone), LeRobotReader(demos).episode(0)
    (ways,) = states.ways().values()
    length, task, initial_state = ways[0].length, states.tasks[0], ways[0].initial_state
    with ProcessVectorEnv(alone) as plain:
        states.require_restorable(plain)
        envs = StartingVectorEnv(plain, states)
        for frame in {1, length // 3, 2 * length // 3, length - 1}:
            # and after another episode in the same simulator, which must leave no trace
            envs.post_reset([0], [EpisodeSpec(task, initial_state + 1)])
            envs.wait([0])
            envs.post_reset([0], [EpisodeSpec(task, initial_state, Start(0, frame))])
            seen = envs.wait([0]).observation
            for step in range(frame, length):
                np.testing.assert_array_equal(seen.images[0], episode[IMAGE][step])
                np.testing.assert_array_equal(seen.proprio[0], episode[STATE][step])
                assert seen.time_fraction[0] == np.float32(step / 100)
                envs.post_step([0], episode[ACTION][step][None, None])
                result = envs.wait([0])
                seen = result.observation
                assert result.terminated.tolist() == [step == length - 1], (frame, step)
