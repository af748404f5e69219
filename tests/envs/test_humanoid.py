"""A body of 17 joints, of a file beside this package, through the door for Gymnasium environments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = """
import numpy as np
from vla_rl.config import EnvConfig
from vla_rl.envs.registry import benchmark, playable
from vla_rl.types import EpisodeSpec

suite = "gym:humanoid_reach:RightHand-v0,expert=humanoid_reach:expert"
played, config = benchmark(suite), EnvConfig(suite=suite, action_repeat=1, action_chunk=1, horizon=10)
first, second = played.make_envs(config, 2)
print(played.action_dim, first.proprio_dim, first.snapshots_in_words)
solved = 0
for seed in range(6):
    first.reset(EpisodeSpec("RightHand-v0", seed))
    expert, ended = played.make_expert(first), False
    while not ended:
        _, success, truncated, _ = first.step(expert.action()[None])
        ended = success or truncated
    solved += success
print("solved", solved)
first.reset(EpisodeSpec("RightHand-v0", 1))
actions = np.random.default_rng(0).uniform(-1, 1, (6, 1, 17)).astype(np.float32)
for action in actions[:3]:
    first.step(action)
second.restore(first.snapshot())
for action in actions[3:]:
    assert first.step(action) == second.step(action)
    assert np.array_equal(first.render(), second.render())
    assert np.array_equal(first.proprio(), second.proprio())
simulator = first.simulator.env.unwrapped
red = first.render().astype(int)
assert ((red[..., 0] > 120) & (red[..., 2] < 60) & (red[..., 1] < 60)).sum() > 10
first.reset(EpisodeSpec("RightHand-v0", 1))  # at rest
simulator.data.mocap_pos[0] = simulator.data.geom("right_hand").xpos  # the red ball
assert first.step(np.zeros((1, 17), np.float32))[1]
first.reset(EpisodeSpec("RightHand-v0", 1))
simulator.data.mocap_pos[1] = simulator.data.geom("right_hand").xpos  # the blue one
assert not first.step(np.zeros((1, 17), np.float32))[1]
print("exact")
"""


@pytest.mark.sim
def test_a_humanoid_is_played_as_any_other_environment():
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium")
    # in a process of its own, since MuJoCo picks how it draws when it is first imported
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "17 34 exact, by the environment's state"
    assert int(lines[1].removeprefix("solved ")) >= 5
    assert lines[2] == "exact"
