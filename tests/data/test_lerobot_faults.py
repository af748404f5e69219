"""Every fault of a dataset is one error that names where it lies; what looks odd but is right is read right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_dataset import (
    DATA,
    EPISODES,
    FPS,
    INFO,
    LENGTH,
    PNG_CAMERA,
    STATS,
    TASKS,
    VIDEO_CAMERA,
    at,
    edit_column,
    edit_info,
    refused,
    write_small_dataset,
)  # fmt: skip

from vla_rl.config import UserError
from vla_rl.data.demonstrations import load_demonstrations
from vla_rl.data.lerobot import LeRobotReader

# --- numbers that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e38, 1e38])
@pytest.mark.parametrize("name", ["action", "observation.state"])
def test_numbers_out_of_reach_are_named_by_episode_frame_and_dimension(
    dataset: Path, name: str, value: float
):
    edit_column(dataset / DATA, name, lambda rows: at(6, [*rows[6][:1], value, *rows[6][2:]])(rows))
    refused(dataset, rf"{name}: expected finite numbers .* at episode 1, frame 2, dimension 1\.")


def test_a_null_among_the_actions_is_named(dataset: Path):
    edit_column(dataset / DATA, "action", at(6, None))
    refused(dataset, r"action: expected a number, got null in episode 1, frame 2")
    kind = pa.list_(pa.float32())
    edit_column(
        dataset / DATA, "action", lambda rows: at(6, [0.0, None, 0.0])(at(6, 0)(rows)), kind
    )
    refused(dataset, r"action: expected a number, got null in episode 1, frame 2")


def test_actions_of_another_kind_are_named(dataset: Path):
    edit_column(dataset / DATA, "action", lambda rows: [str(r) for r in rows], pa.string())
    refused(dataset, r"action: expected rows of shape \(3,\), got .*string.* in episode 0, frame 0")
    edit_column(dataset / DATA, "action", lambda rows: [["x"] * 3] * 12, pa.list_(pa.string()))
    refused(dataset, r"action: expected numbers of type float32, got .*string")
    edit_column(
        dataset / DATA,
        "action",
        lambda rows: at(9, [0.0])([[0.0] * 3] * 12),
        pa.list_(pa.float64()),
    )
    refused(dataset, r"expected rows of shape \(3,\), got a list of 1 in episode 2, frame 1")


def test_another_width_of_floats_and_lists_of_any_length_are_read(dataset: Path, original: Path):
    kind = pa.large_list(pa.float64())
    edit_column(dataset / DATA, "action", lambda rows: rows, kind)
    one, two = (
        load_demonstrations(dataset, camera=PNG_CAMERA),
        load_demonstrations(original, camera=PNG_CAMERA),
    )
    np.testing.assert_array_equal(one.actions, two.actions)


@pytest.mark.parametrize("as_list", [False, True])
def test_an_action_of_one_number_is_a_vector_of_one(tmp_path: Path, as_list: bool):
    folder = write_small_dataset(tmp_path / "d", action_size=1)
    scalars = load_demonstrations(folder, camera=PNG_CAMERA).actions
    assert scalars.shape == (12, 1)
    if as_list:
        kind = pa.list_(pa.float32(), 1)
        edit_column(folder / DATA, "action", lambda rows: [[row] for row in rows], kind)
    demos = load_demonstrations(folder, camera=PNG_CAMERA, action_size=1)
    np.testing.assert_array_equal(demos.actions, scalars)
    assert demos.action_low.shape == (1,)


def test_statistics_are_finite_and_in_order(dataset: Path):
    whole = json.loads((dataset / STATS).read_text())

    def said(**changes: Any) -> str:
        document = {**whole, "action": {**whole["action"], **changes}}
        (dataset / STATS).write_text(json.dumps(document))
        with pytest.raises(UserError) as raised:
            _ = LeRobotReader(dataset).stats
        return str(raised.value)

    assert "stats.json: action.q01[1]: expected a finite number, got nan" in said(
        q01=[0, float("nan"), 0]
    )
    assert "action.q99: expected numbers of at least those of q01" in said(q99=[-5.0] * 3)
    assert "action.max: expected numbers of at least those of min" in said(max=[0.0])
    assert "action.std: expected numbers of at least 0, got -1.0" in said(std=[1.0, -1.0, 1.0])
    assert "action.mean: expected numbers" in said(mean=None)
    assert "action.mean: expected numbers" in said(mean=[[1], [2, 3]])


# --- tasks


@pytest.mark.parametrize("numbers", [(3, 7), (0, 2), (7, 3)])
def test_instructions_are_found_by_number_whatever_the_gaps(
    dataset: Path, numbers: tuple[int, int]
):
    edit_column(dataset / TASKS, "task_index", lambda rows: [numbers[i] for i in rows])
    edit_column(dataset / DATA, "task_index", lambda rows: [numbers[i] for i in rows])
    demos = load_demonstrations(dataset, camera=PNG_CAMERA)
    told = [demos.instructions[i] for i in demos.task_ids]
    assert told == ["open"] * 4 + ["close"] * 4 + ["open"] * 4
    reader = LeRobotReader(dataset)
    assert [reader.episode(i)["task"] for i in range(3)] == ["open", "close", "open"]
    assert LeRobotReader(dataset).frame(5)["task"] == "close"


@pytest.mark.parametrize("number", [9, -1])
def test_a_task_that_is_not_there_is_named(dataset: Path, number: int):
    edit_column(dataset / DATA, "task_index", at(6, number))
    refused(
        dataset,
        rf"task_index: expected the number of a task in .*tasks\.parquet \(which has 0, 1\), got {number} in "
        r"episode 1, frame 2",
    )


@pytest.mark.parametrize(
    ("file", "column", "value", "message"),
    [
        (DATA, "task_index", None, "task_index: expected a number, got null in episode 0, frame 1"),
        (TASKS, "task_index", None, "'task_index': expected a number, got null in row 1"),
        (TASKS, "task_index", -4, "'task_index': expected a whole number of at least 0, got -4 in row 1"),
        (TASKS, "task_index", 0, "'task_index': expected a number of its own for every task, got 0 twice"),
        (TASKS, "task", None, "'task': expected a text .*, got null in row 1"),
        (TASKS, "task", "x" * 20_000, "'task': expected a text of at most 10000 .*, got a longer one in row 1"),
    ],
)  # fmt: skip
def test_faults_of_the_task_table_are_named(
    dataset: Path, file: str, column: str, value: Any, message: str
):
    edit_column(dataset / file, column, at(1, value))
    refused(dataset, message)


# --- time


def shown(folder: Path, episode: int) -> np.ndarray:
    """The mean colour of each picture of an episode."""
    return LeRobotReader(folder).pictures(VIDEO_CAMERA, episode).mean(axis=(1, 2))


def test_the_picture_of_a_frame_is_at_the_start_of_its_episode_plus_its_timestamp(
    dataset: Path, original: Path
):
    """Timestamps that do not begin at 0 go with an earlier start: then the same pictures are meant."""
    shift = LENGTH / FPS
    edit_column(dataset / DATA, "timestamp", lambda t: t[:4] + [s + shift for s in t[4:]])
    name = f"videos/{VIDEO_CAMERA}/from_timestamp"
    edit_column(dataset / EPISODES, name, lambda t: [t[0], *(s - shift for s in t[1:])])
    for episode in range(3):
        np.testing.assert_array_equal(shown(dataset, episode), shown(original, episode))


def test_a_shift_of_the_timestamps_alone_shows_other_pictures(dataset: Path, original: Path):
    edit_column(dataset / DATA, "timestamp", lambda t: [s + 1 / FPS for s in t[:4]] + t[4:])
    following = np.concatenate([shown(original, 0)[1:], shown(original, 1)[:1]])
    np.testing.assert_array_equal(shown(dataset, 0), following)


def test_a_frame_rate_that_is_no_whole_number(dataset: Path, original: Path):
    edit_info(dataset, "fps", 9.99)
    edit_column(dataset / DATA, "timestamp", lambda t: [s * 10 / 9.99 for s in t])
    assert LeRobotReader(dataset).fps == pytest.approx(9.99)
    np.testing.assert_array_equal(shown(dataset, 2), shown(original, 2))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"timestamp: expected finite numbers .* episode 1, frame 2"),
        (0.05, r"timestamp: expected times in ascending order, got 0\.05 after 0\.1 in episode 1, frame 2"),
        (1e8, r"top/.*mp4 is damaged: expected 4 pictures"),
    ],
)  # fmt: skip
def test_times_that_no_video_has(dataset: Path, value: float, message: str):
    change = (
        at(6, value) if value < 1 or value != value else lambda t: [*t[:6], value, value, *t[8:]]
    )
    edit_column(dataset / DATA, "timestamp", change)
    refused(dataset, message, VIDEO_CAMERA)


# --- meta/info.json


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fps", 0, "fps: expected a number above 0, got 0"),
        ("fps", -5, "fps: expected a number above 0, got -5"),
        ("fps", None, "fps: expected a number, got null"),
        ("features", None, "features: expected an object, got null"),
        ("features/action/dtype", "bfloat16", r'features\.action\.dtype: expected .*float32.*, got "bfloat16"'),
        ("features/action/shape", [], r"features\.action\.shape: expected at least 1 entries"),
        ("features/action/shape", ["3"], r'features\.action\.shape\[0\]: expected a whole number, got "3"'),
        ("features/action/shape", [0], r"shape\[0\]: expected a number of at least 1, got 0"),
        (f"features/{PNG_CAMERA}/shape", [16, 16], r'\["observation\.images\.image"\]\.shape: expected height, width'),
        (f"features/{PNG_CAMERA}/shape", [10**9, 10**9, 3], r"shape\[0\]: expected a number of at most 65536"),
        ("features/action/dtype", "string", "expected 'action' to be a vector of numbers, got string"),
        ("features/action/shape", [1, 3], "expected 'action' to be a vector of numbers"),
        ("total_episodes", 2, "expected 2 episodes in all"),
        ("total_frames", "12", 'total_frames: expected a whole number, got "12"'),
        ("video_path", None, "video_path: expected a path pattern, as the feature .* is a video, got null"),
        ("data_path", "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
         "data_path: expected a path with the places .*convert_dataset_v21_to_v30"),
        ("data_path", "{chunk_index:2000000000d}", "data_path: expected a path with the places"),
        ("data_path", "{chunk_index!r}", "data_path: expected a path with the places"),
        ("data_path", "{chunk_index.__class__}", "data_path: expected a path with the places"),
        ("data_path", "{0}", "data_path: expected a path with the places"),
        ("data_path", "{", "data_path: expected a path with the places"),
        ("data_path", "../other/{chunk_index}.parquet", "data_path: expected a path inside its folder"),
        ("data_path", "/etc/passwd", "data_path: expected a path inside its folder"),
        ("video_path", "videos/../../{video_key}.mp4", "video_path: expected a path inside its folder"),
        ("video_path", "{video_key:03d}.mp4", "video_path: expected a path with the places"),
        ("data_path", "data/none.parquet", "expected the file .*none.parquet, which is missing"),
    ],
)  # fmt: skip
def test_faults_of_info_are_named_by_their_key(dataset: Path, key: str, value: Any, message: str):
    edit_info(dataset, key, value)
    refused(dataset, message)


def test_a_feature_that_is_not_described_is_not_lost_without_a_word(dataset: Path):
    document = json.loads((dataset / INFO).read_text())
    del document["features"]["observation.state"]
    (dataset / INFO).write_text(json.dumps(document))
    refused(
        dataset,
        "expected the features of meta/info.json alone as columns, got also 'observation.state'",
    )


def test_depth_maps_and_languages_are_left_alone(dataset: Path):
    """They are features of lerobot's that a policy of RGB pictures does not learn from."""
    edit_info(dataset, f"features/{VIDEO_CAMERA}/info", {"is_depth_map": True})
    edit_info(
        dataset, "features/language_events", {"dtype": "language", "shape": [1], "names": None}
    )
    reader = LeRobotReader(dataset)
    assert reader.cameras == (PNG_CAMERA,)
    assert set(reader.episode(0)) >= {PNG_CAMERA, "action"}
    assert load_demonstrations(dataset).images.shape == (12, 16, 16, 3)
    with pytest.raises(UserError, match="expected a camera of RGB pictures"):
        reader.pictures(VIDEO_CAMERA, 0)


# --- meta/episodes


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("length", None, "'length': expected a number, got null in row 1"),
        ("length", 0, "'length': expected a whole number of at least 1, got 0 in row 1"),
        ("length", 5, "'dataset_from_index': expected 9, got 8 in row 2"),
        ("episode_index", 2, "'episode_index': expected 1, got 2 in row 1"),
        ("episode_index", None, "'episode_index': expected a number, got null in row 1"),
        ("tasks", None, "'tasks': expected a list of texts, got null in row 1"),
        ("tasks", [None], "'tasks': expected a text .*, got null in row 1"),
        ("dataset_from_index", 3, "'dataset_from_index': expected 4, got 3 in row 1"),
        ("data/file_index", -1, "'data/file_index': expected a whole number of at least 0, got -1 in row 1"),
        ("data/file_index", 7, "expected 8 rows, the frames of its episodes in meta/episodes, got 12"),
        (f"videos/{VIDEO_CAMERA}/from_timestamp", None, "from_timestamp': expected a number, got null in row 1"),
        (f"videos/{VIDEO_CAMERA}/from_timestamp", float("nan"), "from_timestamp': expected finite .* at row 1"),
        (f"videos/{VIDEO_CAMERA}/chunk_index", None, "chunk_index': expected a number, got null in row 1"),
    ],
)  # fmt: skip
def test_faults_of_the_episode_table_are_named_by_row_and_column(
    dataset: Path, column: str, value: Any, message: str
):
    if column == "data/file_index" and value == 7:
        message = "expected the episodes in the order of their data files"
    edit_column(dataset / EPISODES, column, at(1, value))
    refused(dataset, message)


def test_episodes_counted_from_one(dataset: Path):
    edit_column(dataset / EPISODES, "episode_index", lambda rows: [row + 1 for row in rows])
    refused(dataset, "'episode_index': expected 0, got 1 in row 0")


def test_frames_in_another_order_within_an_episode(dataset: Path):
    edit_column(dataset / DATA, "index", lambda rows: [1, 0, *rows[2:]])
    refused(dataset, "column 'index' of frame 0 should be 0, got 1")
