"""Where the gripper's opening and the speed of the hand come from, robot by robot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vla_rl.config import LabelConfig, UserError
from vla_rl.rewards.process.labels import label
from vla_rl.rewards.process.robot_signals import robot_signals
from vla_rl.rewards.trajectories import Trajectory

CONFIG = LabelConfig()
METAWORLD_SAWYER, LIBERO_PANDA = robot_signals("metaworld_sawyer"), robot_signals("libero_panda")


def trajectory(opening, **other) -> Trajectory:
    """A Meta-World episode whose hand moves along x at 1 m/s and whose gripper is open by `opening`."""
    length = len(opening)
    proprio = np.zeros((length, 4), np.float32)
    proprio[:, 0], proprio[:, 3] = 0.1 * np.arange(length), opening
    given = {
        "images": np.zeros((length, 4, 4, 3), np.uint8),
        "proprio": proprio,
        "actions": np.zeros((length, 1, 4), np.float32),
        "instruction": "do it",
        "task": "task",
        "initial_state": 0,
        "success": True,
        "source": "expert",
        "turn_seconds": 0.1,
        "robot": "metaworld_sawyer",
    }
    return Trajectory(**{**given, **other})


def labels_of(episode: Trajectory, config: LabelConfig = CONFIG):
    return label(episode, config, robot_signals(episode.robot))


def test_the_speed_of_a_measured_hand_is_metres_a_second():
    np.testing.assert_allclose(METAWORLD_SAWYER.speed(trajectory([1.0] * 4)), np.ones(4), rtol=1e-6)
    np.testing.assert_array_equal(METAWORLD_SAWYER.speed(trajectory([1.0])), [0.0])


def test_meta_worlds_opening_is_measured():
    episode = trajectory([1.0, 0.5, 0.25])
    np.testing.assert_allclose(METAWORLD_SAWYER.gripper_opening(episode), [1, 0.5, 0.25])


def test_liberos_opening_is_the_distance_of_its_fingers():
    proprio = np.zeros((3, 8), np.float32)
    proprio[:, 6], proprio[:, 7] = [0.04, 0.02, 0.0], [-0.04, -0.02, 0.0]
    episode = trajectory(
        [1.0] * 3, proprio=proprio, actions=np.zeros((3, 2, 7), np.float32), robot="panda"
    )
    np.testing.assert_allclose(LIBERO_PANDA.gripper_opening(episode), [1, 0.5, 0], atol=1e-6)


def test_without_proprioception_commands_take_its_place():
    actions = np.zeros((4, 2, 7), np.float32)
    actions[:, :, 6] = [[-1, -1], [-1, 1], [1, 1], [0, -1]]  # the last of a chunk counts
    actions[0, :, 0], actions[1, 0, 1] = 0.5, 1.0
    episode = trajectory(
        [1.0] * 4, proprio=np.zeros((4, 0), np.float32), actions=actions, robot="libero_panda"
    )
    # a turn sees what the one before it asked for
    np.testing.assert_allclose(LIBERO_PANDA.gripper_opening(episode), [1, 1, 0, 0])
    # 1 commands 1 m/s; a chunk's mean
    np.testing.assert_allclose(LIBERO_PANDA.speed(episode), [0.5, 0.5, 0, 0])
    assert labels_of(episode).positive[-1]


def test_commands_can_be_asked_for_although_the_opening_is_measured():
    actions = np.zeros((12, 1, 4), np.float32)
    actions[:, 0, 3] = [-1] * 5 + [1] * 7
    episode = trajectory([1.0] * 12, actions=actions)
    assert labels_of(episode).milestones.tolist() == []
    assert labels_of(episode, replace(CONFIG, gripper="commanded")).milestones.tolist() == [6]


def test_of_an_unknown_robot_only_actions_are_read():
    proprio = np.full((3, 5), np.float32(7))
    robot = robot_signals("so100")
    episode = trajectory([1.0] * 3, proprio=proprio, robot="so100")
    assert not robot.has_opening(episode)
    np.testing.assert_allclose(robot.gripper_opening(episode), [0.5] * 3)


def test_the_last_joint_of_any_body_is_no_gripper():
    episode = trajectory(
        [1.0] * 4,
        proprio=np.ones((4, 34), np.float32),
        actions=np.ones((4, 1, 17), np.float32),
        robot="gymnasium",
    )
    with pytest.raises(
        UserError, match=r"the robot 'gymnasium' has them.* --labels\.scheme segments"
    ):
        labels_of(episode)
    labels = labels_of(episode, replace(CONFIG, scheme="segments", num_segments=4))
    np.testing.assert_allclose(labels.progress, [0.25, 0.5, 0.75, 1.0])
    robot = robot_signals("gymnasium")
    assert np.isnan(robot.gripper_opening(episode)).all()
    assert np.isnan(robot.speed(episode)).all()


@pytest.mark.parametrize("what", ["proprio", "actions"])
@pytest.mark.parametrize("scheme", ["keyframe", "segments"])
def test_numbers_that_are_not_finite_are_an_error(what: str, scheme):
    episode = trajectory([1.0] * 5)
    damaged = getattr(episode, what).copy()
    damaged[3].flat[1] = np.nan
    with pytest.raises(UserError, match=r"finite .* at turn 3"):
        labels_of(replace(episode, **{what: damaged}), replace(CONFIG, scheme=scheme))


def test_another_robots_numbers_are_an_error():
    episode = trajectory([1.0] * 5)
    with pytest.raises(UserError, match="proprioception of 8 numbers"):
        label(episode, CONFIG, LIBERO_PANDA)
    blind = replace(episode, proprio=np.zeros((5, 0), np.float32))
    with pytest.raises(UserError, match="actions of 7 numbers"):
        label(blind, CONFIG, LIBERO_PANDA)
    with pytest.raises(UserError, match="opening"):
        labels_of(blind, replace(CONFIG, gripper="measured"))
