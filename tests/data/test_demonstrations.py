from pathlib import Path

import numpy as np
import pytest

from vla_rl.config import UserError
from vla_rl.data.demonstrations import (
    NORMALISED_ROBOTS,
    Demonstrations,
    action_chunks,
    demonstration_features,
    load_demonstrations,
)
from vla_rl.data.lerobot import LeRobotWriter, camera, vector


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


@pytest.mark.parametrize("robot", [*NORMALISED_ROBOTS, "arm"])
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
    if robot in NORMALISED_ROBOTS:
        assert (demos.action_low.tolist(), demos.action_high.tolist()) == ([-1, -1], [1, 1])
    else:
        np.testing.assert_allclose(demos.action_low, np.quantile(actions, 0.01, axis=0))
        np.testing.assert_allclose(demos.action_high, np.quantile(actions, 0.99, axis=0))


def write_cameras(folder, *names):
    """A dataset with the given cameras, laid out as LeRobot's LIBERO datasets; camera i shows the colour i."""
    features = {name: camera(8, 8, video=False) for name in names}
    features |= {"observation.state": vector(8), "action": vector(7)}
    with LeRobotWriter(folder, fps=10, features=features, robot_type="panda") as writer:
        frames = {name: np.full((4, 8, 8, 3), i, np.uint8) for i, name in enumerate(names)}
        frames |= {"observation.state": np.zeros((4, 8)), "action": np.zeros((4, 7))}
        writer.add_episode(frames, task="open the drawer")
    return folder


LEROBOT_LIBERO = ("observation.images.image2", "observation.images.image")


@pytest.mark.parametrize(
    ("cameras", "wanted", "found"),
    [
        (LEROBOT_LIBERO, "", 1),
        (LEROBOT_LIBERO, "observation.images.image2", 0),
        (("observation.images.top",), "", 0),
    ],
)
def test_the_camera_is_ours_or_the_only_one_or_the_one_that_was_named(
    tmp_path, cameras, wanted, found
):
    demos = load_demonstrations(write_cameras(tmp_path / "d", *cameras), camera=wanted)
    assert (demos.images == found).all()
    assert demos.proprio.shape == (4, 8)


def test_several_cameras_without_a_choice_are_named(tmp_path):
    folder = write_cameras(tmp_path / "d", "observation.images.top", "observation.images.hand")
    with pytest.raises(UserError, match=r"2 cameras.*--camera.*images\.top, observation"):
        load_demonstrations(folder)
    with pytest.raises(UserError, match=r"Did you mean 'observation\.images\.top'"):
        load_demonstrations(folder, camera="observation.images.tip")
    with pytest.raises(UserError, match="no camera 'action'"):
        load_demonstrations(folder, camera="action")
    with pytest.raises(UserError, match="without pictures"):
        load_demonstrations(write_cameras(tmp_path / "e"))


def test_pictures_are_resized_on_request(tmp_path):
    folder = write_cameras(tmp_path / "d", "observation.images.image")
    assert load_demonstrations(folder, image_size=4).images.shape == (4, 4, 4, 3)


def test_the_first_episodes_of_each_task_are_as_if_there_were_no_others(tmp_path: Path) -> None:
    """Also the quantiles of the actions, which stand for -1 and +1, are those of what is taken."""
    whole, few = (tmp_path / name for name in ("whole", "few"))
    for folder, tasks in ((whole, ("open", "close", "open", "close")), (few, ("open", "close"))):
        rng = np.random.default_rng(0)
        features = {"observation.images.image": camera(8, 8, video=False), "action": vector(3)}
        with LeRobotWriter(folder, fps=10, features=features, robot_type="arm") as writer:
            for task in tasks:
                frames = {
                    "observation.images.image": rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8),
                    "action": rng.uniform(-1, 1, (5, 3)),
                }
                writer.add_episode(frames, task=task)
    taken, alone = load_demonstrations(whole, episodes_per_task=1), load_demonstrations(few)
    assert taken.num_episodes == 2
    for name in ("images", "actions", "episode_ids", "task_ids", "action_low", "action_high"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(alone, name))
    with pytest.raises(
        UserError, match=r"3 episodes of each task were asked for, and 'open' has 2"
    ):
        load_demonstrations(whole, episodes_per_task=3)
