"""ManiSkill itself: seeds, snapshots, success, images, and what is said where no driver draws.

In the environment of `make setup-maniskill`: `make test-maniskill`. Skipped where ManiSkill is not installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from vla_rl.config import ConfigError, UserError
from vla_rl.envs.maniskill.benchmark import MANISKILL
from vla_rl.envs.maniskill.env import ManiSkillEnv
from vla_rl.envs.maniskill.package import drawing_device
from vla_rl.envs.maniskill.tasks import TASKS
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.types import EpisodeSpec

pytest.importorskip("mani_skill", reason="needs ManiSkill: make test-maniskill")

CONFIG = replace(
    MANISKILL.laptop_defaults("maniskill:PushCube-v1"), image_size=32, action_repeat=1, horizon=40
)
PUSH = EpisodeSpec("PushCube-v1", 3)


def undrawn(suite: str = CONFIG.suite) -> ManiSkillEnv:
    return ManiSkillEnv(replace(CONFIG, suite=suite), drawn=False)


def pushing(env: ManiSkillEnv) -> np.ndarray:
    """Towards the cube's far side, down, and forward: what ManiSkill's state says, in actions."""
    task = env.simulator.env
    cube, hand = task.obj.pose.p[0].numpy(), env.proprio()[:3]
    behind = cube + np.array([-0.06, 0, 0])
    aligned = abs(hand[1] - cube[1]) < 0.015 and hand[2] < 0.05
    aim = cube + np.array([0.3, 0, 0]) if aligned else behind
    move = np.clip((aim - hand) / 0.1, -1, 1)
    if not aligned and hand[0] > behind[0] + 0.01:
        move[2] = 0.0  # back first, then down
    return np.array([*move, 0, 0, 0, 1], np.float32)


def random_turns(count: int) -> np.ndarray:
    """Near the table, so that things are touched."""
    actions = np.random.default_rng(0).uniform(-1, 1, (count, 2, 7)).astype(np.float32)
    actions[..., 2] = -0.5
    actions[..., 0] = np.abs(actions[..., 0])
    return actions


def played(env: ManiSkillEnv, actions: np.ndarray) -> np.ndarray:
    for turn in actions:
        if any(env.step(turn)[1:3]):
            break
    return np.concatenate(
        [value for key, value in env.snapshot().items() if key.startswith("state")]
    )


def test_a_seed_is_the_same_episode_whatever_was_played_before() -> None:
    env, other, actions = undrawn(), undrawn(), random_turns(12)
    env.reset(PUSH)
    first = env.simulator.save()
    ends = played(env, actions)
    env.reset(EpisodeSpec("PushCube-v1", 8))
    assert not np.array_equal(env.simulator.save()["state:actors/cube"], first["state:actors/cube"])
    played(env, actions[::-1])
    for slot in (env, other):
        slot.reset(PUSH)
        assert np.array_equal(played(slot, actions), ends)


def test_a_push_succeeds_and_ends_the_episode() -> None:
    env, ended, rewards = undrawn(), False, []
    env.reset(PUSH)
    dense = env.dense_reward()
    while not ended:
        reward, success, cut, steps = env.step(np.repeat(pushing(env)[None], 2, axis=0))
        assert 1 <= steps <= 2
        rewards.append(reward)
        ended = success or cut
    assert rewards[-1] == 1.0
    assert not any(rewards[:-1])
    assert 0 <= dense < env.dense_reward() <= 1
    with pytest.raises(RuntimeError, match="has ended"):
        env.step(np.zeros((2, 7), np.float32))


def test_the_gripper_closes_at_one() -> None:
    env = undrawn()
    env.reset(PUSH)
    for sign, opening in ((1.0, 0.0), (-1.0, 0.08)):
        for _ in range(6):
            env.step(np.array([[0, 0, 0, 0, 0, 0, sign]] * 2, np.float32))
        assert env.proprio()[10:].sum() == pytest.approx(opening, abs=0.01)


def test_a_snapshot_goes_on_exactly_and_a_wrong_one_is_refused() -> None:
    env, other, actions = undrawn(), undrawn(), random_turns(14)
    env.reset(PUSH)
    played(env, actions[:8])
    kept = env.snapshot()
    ends = played(env, actions[8:])
    other.restore(kept)
    assert other.turns == 8
    assert np.array_equal(played(other, actions[8:]), ends)
    moved = {**kept, "state:actors/cube": kept["state:actors/cube"] + 0.05}
    with pytest.raises(UserError, match="lead elsewhere"):
        other.restore(moved)
    with pytest.raises(UserError, match="expected actions of shape"):
        other.restore({**kept, "actions": np.zeros(3)})
    with pytest.raises(ConfigError, match="not in suite"):
        other.restore({**kept, "task": "PickCube-v1"})


def test_maniskills_own_state_can_be_written_back() -> None:
    env, actions = undrawn(), random_turns(6)
    env.reset(PUSH)
    played(env, actions)
    state = env.simulator.save()
    env.reset(PUSH)
    env.simulator.load(state)
    for key, value in env.simulator.save().items():
        assert value == pytest.approx(state[key], abs=1e-5), key


@pytest.mark.parametrize("task", TASKS)
def test_every_task_begins_and_has_a_reward(task: str) -> None:
    env = undrawn(f"maniskill:{task}")
    env.reset(EpisodeSpec(task, 0))
    _, success, _, steps = env.step(np.zeros((2, 7), np.float32))
    assert (success, steps) == (False, 2)
    assert 0 <= env.dense_reward() <= 1
    assert np.isfinite(env.proprio()).all()
    from mani_skill.utils.registration import REGISTERED_ENVS

    assert REGISTERED_ENVS[task].max_episode_steps == TASKS[task].steps
    env.close()


def require_drawing() -> None:
    try:
        drawing_device()
    except UserError as error:
        pytest.skip(str(error))


def test_slots_of_one_process_do_not_mix() -> None:
    require_drawing()
    config = replace(CONFIG, suite="maniskill:PushCube-v1,PickCube-v1", num_envs=2, action_repeat=1)
    specs = [EpisodeSpec("PushCube-v1", 1), EpisodeSpec("PickCube-v1", 1)]
    actions = random_turns(2)
    with SerialVectorEnv(config, MANISKILL.make_envs) as envs:
        envs.post_reset([0, 1], specs)
        assert envs.wait([0, 1]).observation.instructions == envs.instructions
        envs.post_step([0, 1], actions)
        together = envs.wait([0, 1]).observation
        envs.post_reset([0], specs[1:])
        envs.wait([0])
        envs.post_step([0], actions[1:])
        alone = envs.wait([0]).observation
    assert np.array_equal(together.images[1], alone.images[0])
    assert together.images.std(axis=(1, 2)).min() > 5, "something is to be seen"


def test_a_camera_that_there_is_not_and_a_missing_driver_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"no camera 'base_camra'.*base_camera"):
        ManiSkillEnv(replace(CONFIG, camera="base_camra"), drawn=False)
    code = (
        "from vla_rl.envs.maniskill.package import drawing_device\n"
        "from vla_rl.config import UserError\n"
        "try: drawing_device()\n"
        "except UserError as error: print('SAID', error)"
    )
    environment = {**os.environ, "VK_ICD_FILENAMES": "no-such-driver.json", "VK_DRIVER_FILES": ""}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    ).stdout
    lines = [line for line in said.splitlines() if line.startswith("SAID")]
    assert len(lines) == 1
    assert "VK_ICD_FILENAMES names no-such-driver.json, which is no file" in lines[0]
    assert "mesa-vulkan-drivers" in lines[0]
