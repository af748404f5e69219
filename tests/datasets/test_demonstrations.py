import numpy as np
import pytest

from vla_rl.data.demonstrations import (
    NORMALISED_ROBOT,
    Demonstrations,
    action_chunks,
    demonstration_features,
    load_demonstrations,
)
from vla_rl.data.lerobot import LeRobotWriter


def demonstrations(task_of_episode, length=3):
    episodes = len(task_of_episode)
    frames = episodes * length
    return Demonstrations(
        images=np.zeros((frames, 4, 4, 3), np.uint8),
        proprio=np.zeros((frames, 2), np.float32),
        actions=np.arange(frames * 2, dtype=np.float32).reshape(frames, 2),
        episode_ids=np.repeat(np.arange(episodes), length),
        task_ids=np.repeat(np.asarray(task_of_episode), length),
        instructions=("a", "b"),
        action_low=-np.ones(2),
        action_high=np.ones(2),
    )


def test_chunks_repeat_the_last_action_and_never_cross_episodes():
    actions = np.arange(5, dtype=np.float32)[:, None]
    chunks = action_chunks(actions, np.array([0, 0, 0, 1, 1]), chunk=3)[..., 0]
    assert chunks.tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]]


def test_a_chunk_of_one_is_the_action():
    demos = demonstrations([0, 1, 0])
    np.testing.assert_array_equal(
        action_chunks(demos.actions, demos.episode_ids, 1)[:, 0], demos.actions
    )


@pytest.mark.parametrize(
    ("episodes", "fraction", "held_out"),
    [(5, 0.1, 1), (4, 0.1, 0), (20, 0.1, 2), (20, 0.0, 0), (2, 0.99, 1)],
)
def test_split_holds_out_whole_episodes_of_each_task(episodes, fraction, held_out):
    demos = demonstrations([0] * episodes + [1] * episodes)
    train, validation = demos.split(fraction, np.random.default_rng(0))
    assert sorted([*train, *validation]) == list(range(len(demos)))
    assert not set(demos.episode_ids[train]) & set(demos.episode_ids[validation])
    for task in (0, 1):
        rows = validation[demos.task_ids[validation] == task]
        assert len(np.unique(demos.episode_ids[rows])) == held_out


def test_observation_takes_picture_and_instruction_of_the_same_frame():
    demos = demonstrations([1, 0])
    demos.images[:] = np.arange(len(demos))[:, None, None, None]
    seen = demos.observation(np.array([4, 0]))
    assert seen.images[:, 0, 0, 0].tolist() == [4, 0]
    assert seen.instructions == ("a", "b")


@pytest.mark.parametrize("robot", [NORMALISED_ROBOT, "arm"])
def test_loading_what_was_written(tmp_path, robot):
    rng = np.random.default_rng(0)
    features = demonstration_features(16, 3, 2, video=False)
    written = []
    with LeRobotWriter(tmp_path / "d", fps=16, features=features, robot_type=robot) as writer:
        for task in ("open", "close", "open"):
            last = np.arange(40) == 39
            frames = {
                "observation.images.image": rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8),
                "observation.state": rng.normal(size=(40, 3)).astype(np.float32),
                "action": rng.uniform(-0.5, 0.2, (40, 2)).astype(np.float32),
                "next.reward": last.astype(np.float32),
                "next.done": last,
                "next.success": last,
                "initial_state": np.full(40, 3),
            }
            writer.add_episode(frames, task=task)
            written.append(frames)
    demos = load_demonstrations(tmp_path / "d", action_size=2)
    for values, name in ((demos.images, "observation.images.image"), (demos.actions, "action")):
        np.testing.assert_array_equal(values, np.concatenate([frames[name] for frames in written]))
    assert [demos.instructions[i] for i in demos.task_ids[[0, 40, 80]]] == ["open", "close", "open"]
    actions = demos.actions.astype(np.float64)
    if robot == NORMALISED_ROBOT:
        assert (demos.action_low.tolist(), demos.action_high.tolist()) == ([-1, -1], [1, 1])
    else:
        np.testing.assert_allclose(demos.action_low, np.quantile(actions, 0.01, axis=0))
        np.testing.assert_allclose(demos.action_high, np.quantile(actions, 0.99, axis=0))
