"""The reader against a dataset that lerobot wrote, and against damaged ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_rl.config import UserError
from vla_rl.data.demonstrations import load_demonstrations
from vla_rl.data.lerobot import LeRobotReader

GOLDEN = Path(__file__).parent.parent / "fixtures" / "lerobot_v3"
DATA = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.image/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "expected.npz") as file:
        return {name: file[name] for name in file}


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(GOLDEN / "dataset", tmp_path / "dataset")
    return tmp_path / "dataset"


def edit_info(folder, **changes):
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_column_equals_what_lerobot_returns(expected):
    reader = LeRobotReader(GOLDEN / "dataset")
    assert set(reader.features) == set(expected)
    for name, values in expected.items():
        if reader.features[name].visual:
            ours = np.concatenate([reader.pictures(name, episode) for episode in range(3)])
        else:
            ours = reader.column(name)
        assert ours.dtype == values.dtype
        np.testing.assert_array_equal(ours, values, err_msg=name)


def test_metadata_of_the_golden_dataset():
    reader = LeRobotReader(GOLDEN / "dataset")
    assert (len(reader), len(reader.episodes), reader.fps) == (51, 3, 20)
    assert [entry.length for entry in reader.episodes] == [13, 21, 17]
    assert reader.tasks == ("pick up the bowl", "open the drawer")
    assert [entry.tasks[0] for entry in reader.episodes] == [reader.tasks[i] for i in (0, 1, 0)]
    assert reader.cameras == ("observation.images.image", "observation.images.image2")
    assert reader.stats["action"]["q01"].shape == (7,)
    assert reader.stats["action"]["max"][0] == pytest.approx(1.9995038509368896)


def test_frames_and_episodes_agree_with_the_columns(expected):
    reader = LeRobotReader(GOLDEN / "dataset")
    for index in (0, 12, 13, 33, 34, 50):  # first and last frame of each episode
        frame = reader.frame(index)
        for name, values in expected.items():
            np.testing.assert_array_equal(frame[name], values[index], err_msg=f"{name} of {index}")
        assert frame["task"] == ("open the drawer" if 13 <= index < 34 else "pick up the bowl")
    episode = reader.episode(1)
    for name, values in expected.items():
        np.testing.assert_array_equal(episode[name], values[13:34], err_msg=name)
    assert episode["task"] == "open the drawer"


def test_some_pictures_of_an_episode_are_those_of_the_whole(expected):
    reader = LeRobotReader(GOLDEN / "dataset")
    some = reader.pictures("observation.images.image", 2, [3, 4, 9])
    np.testing.assert_array_equal(
        some, expected["observation.images.image"][34 + np.array([3, 4, 9])]
    )


def test_a_task_table_with_an_unnamed_index_is_read(copy):
    table = pq.read_table(copy / "meta/tasks.parquet").rename_columns(
        ["task_index", "__index_level_0__"]
    )
    pq.write_table(table, copy / "meta/tasks.parquet")
    assert LeRobotReader(copy).tasks == ("pick up the bowl", "open the drawer")


def test_missing_folder_and_missing_info(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        LeRobotReader(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"meta/info\.json is missing"):
        LeRobotReader(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"codebase_version": "v3.0"}'])
def test_unreadable_info(copy, text):
    (copy / "meta/info.json").write_text(text)
    with pytest.raises(UserError, match=r"info\.json|codebase_version"):
        LeRobotReader(copy)


def test_wrong_version(copy):
    edit_info(copy, codebase_version="v2.1")
    with pytest.raises(UserError, match=r"codebase_version: expected v3\.0, got \"v2\.1\""):
        LeRobotReader(copy)


def test_empty_dataset(copy):
    edit_info(copy, total_episodes=0, total_frames=0)
    with pytest.raises(UserError, match="empty dataset: expected at least one episode, got 0"):
        load_demonstrations(copy)


def test_counts_that_contradict_each_other(copy):
    edit_info(copy, total_frames=50)
    with pytest.raises(UserError, match="expected 3 episodes with 50 frames, got 3 with 51"):
        LeRobotReader(copy)


@pytest.mark.parametrize(
    "name", [DATA, "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet", VIDEO]
)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_truncated_file(copy, name, kept):
    path = copy / name
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match="damaged"):
        load_demonstrations(copy)


@pytest.mark.parametrize("name", [DATA, "meta/tasks.parquet", VIDEO])
def test_missing_file(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match="missing"):
        load_demonstrations(copy)


def test_damaged_bytes_inside_a_parquet_file(copy):
    content = bytearray((copy / DATA).read_bytes())
    content[4:2000] = bytes(1996)
    (copy / DATA).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        LeRobotReader(copy).column("action")


def test_frames_in_another_order_than_the_episode_table_says(copy):
    table = pq.read_table(copy / DATA)
    pq.write_table(table.take(pa.array(np.arange(51)[::-1])), copy / DATA)
    with pytest.raises(UserError, match="column 'episode_index' of frame 0 should be 0, got 2"):
        load_demonstrations(copy)


def test_wrong_action_size():
    with pytest.raises(UserError, match=r"expected feature 'action' of size 4, got shape \(7,\)"):
        load_demonstrations(GOLDEN / "dataset", action_size=4)


def test_action_column_of_another_size_than_info_says(copy):
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"]["action"]["shape"] = [4]
    edit_info(copy, **info)
    with pytest.raises(
        UserError,
        match=r"action: expected rows of shape \(4,\), got a list of 7 in episode 0, frame 0",
    ):
        LeRobotReader(copy).column("action")


def test_unknown_names_and_numbers():
    reader = LeRobotReader(GOLDEN / "dataset")
    with pytest.raises(UserError, match="Did you mean 'action'"):
        reader.column("actions")
    with pytest.raises(UserError, match=r"expected a frame in 0\.\.50, got 51"):
        reader.frame(51)
    with pytest.raises(UserError, match=r"expected an episode in 0\.\.2, got 3"):
        reader.episode(3)


def test_channels_may_be_named_first(copy, expected):
    """Some public datasets describe their pictures as (3, H, W); what is stored does not differ."""
    info = json.loads((copy / "meta" / "info.json").read_text())
    for name in ("observation.images.image", "observation.images.image2"):
        height, width, _ = info["features"][name]["shape"]
        info["features"][name] |= {
            "shape": [3, height, width],
            "names": ["channels", "height", "width"],
        }
    edit_info(copy, features=info["features"], fps=float(info["fps"]))
    reader = LeRobotReader(copy)
    assert reader.features["observation.images.image"].names == ("height", "width", "channels")
    np.testing.assert_array_equal(
        reader.pictures("observation.images.image", 0), expected["observation.images.image"][:13]
    )
