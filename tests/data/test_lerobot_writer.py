"""The writer: what it writes reads back, and looks as lerobot's own files do."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_rl.config import ConfigError, UserError
from vla_rl.data.lerobot import Feature, LeRobotReader, LeRobotWriter, camera, vector
from vla_rl.data.lerobot.schema import INDEX_FEATURES, STATISTICS
from vla_rl.data.lerobot.statistics import pixel_histogram, pixel_statistics

GOLDEN = Path(__file__).parent.parent / "fixtures" / "lerobot_v3" / "dataset"
FILES = (
    "meta/tasks.parquet",
    "meta/episodes/chunk-000/file-000.parquet",
    "data/chunk-000/file-000.parquet",
)


def features(video=False, size=16):
    return {
        "observation.images.image": camera(size, size, video=video),
        "observation.state": vector(8),
        "action": vector(4),
        "next.reward": vector(1),
        "next.success": vector(1, dtype="bool"),
        "seed": vector(1, dtype="int64"),
    }


def episode(rng, length, size=16):
    smooth = np.linspace(0, 200, size)[None, :, None] + np.arange(length)[:, None, None, None]
    return {
        "observation.images.image": (smooth + rng.integers(0, 20, (length, size, size, 3))).astype(
            np.uint8
        ),
        "observation.state": rng.normal(size=(length, 8)).astype(np.float32),
        "action": rng.uniform(-1, 1, (length, 4)).astype(np.float32),
        "next.reward": rng.random(length, dtype=np.float32),
        "next.success": rng.random(length) < 0.5,
        "seed": rng.integers(-(2**62), 2**62, length),
    }


def write(folder, episodes, tasks, **options):
    feature = options.pop("features", features())
    with LeRobotWriter(folder, fps=16, features=feature, **options) as writer:
        for frames, task in zip(episodes, tasks, strict=True):
            writer.add_episode(frames, task=task)
    return LeRobotReader(folder)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    words=st.lists(st.text(min_size=1, max_size=12), min_size=5, max_size=5),
    data_file_mb=st.sampled_from([0, 100]),  # 0: a new file for every episode
)
def test_round_trip(tmp_path_factory, seed, lengths, words, data_file_mb):
    rng = np.random.default_rng(seed)
    episodes = [episode(rng, length) for length in lengths]
    tasks = words[: len(lengths)]
    folder = tmp_path_factory.mktemp("round_trip") / "dataset"
    reader = write(folder, episodes, tasks, data_file_mb=data_file_mb)

    assert len(list(folder.glob("data/*/*.parquet"))) == (1 if data_file_mb else len(lengths))
    assert len(reader) == sum(lengths)
    for index, (written, task) in enumerate(zip(episodes, tasks, strict=True)):
        read = reader.episode(index)
        assert read["task"] == task
        for name, values in written.items():
            assert read[name].dtype == values.dtype
            np.testing.assert_array_equal(read[name], values, err_msg=name)
        np.testing.assert_array_equal(read["frame_index"], np.arange(lengths[index]))
        np.testing.assert_allclose(read["timestamp"], np.arange(lengths[index]) / 16)
    np.testing.assert_array_equal(reader.column("index"), np.arange(sum(lengths)))
    last = len(reader) - 1
    np.testing.assert_array_equal(
        reader.frame(last)["observation.images.image"], episodes[-1]["observation.images.image"][-1]
    )


@pytest.mark.parametrize("video_file_mb", [0, 200])
def test_videos_keep_order_and_nearly_the_pictures(tmp_path, video_file_mb):
    rng = np.random.default_rng(0)
    episodes = [episode(rng, length, size=64) for length in (5, 1, 8)]
    for number, frames in enumerate(episodes):  # brightness tells which frame one is looking at
        pictures = frames["observation.images.image"]
        pictures[:] = (20 * number + 8 * np.arange(len(pictures)) + 40)[:, None, None, None]
    reader = write(
        tmp_path / "d",
        episodes,
        ["a", "b", "a"],
        features=features(True, 64),
        video_file_mb=video_file_mb,
    )
    assert len(list((tmp_path / "d/videos").rglob("*.mp4"))) == (1 if video_file_mb else 3)
    for number, frames in enumerate(episodes):
        read = reader.pictures("observation.images.image", number).astype(float)
        assert np.abs(read - frames["observation.images.image"]).max() <= 3
    assert reader.features["observation.images.image"].info["video.codec"] in ("av1", "h264")


def golden_twin(folder):
    """A dataset with the golden one's features, episodes and numbers, written by us."""
    golden = LeRobotReader(GOLDEN)
    kept = {
        n: Feature(f.dtype, f.shape, f.names)
        for n, f in golden.features.items()
        if n not in INDEX_FEATURES
    }
    with LeRobotWriter(folder, fps=golden.fps, features=kept) as writer:
        for entry in golden.episodes:
            frames = golden.episode(entry.index)
            writer.add_episode({name: frames[name] for name in kept}, task=frames["task"])


def test_files_look_as_lerobots_do(tmp_path):
    folder = tmp_path / "twin"
    golden_twin(folder)
    paths = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    assert paths == {p.relative_to(GOLDEN) for p in GOLDEN.rglob("*") if p.is_file()}
    for name in FILES:
        ours, theirs = pq.read_schema(folder / name), pq.read_schema(GOLDEN / name)
        assert {f.name: f.type for f in ours} == {f.name: f.type for f in theirs}, name
        assert set(ours.metadata or {}) == set(theirs.metadata or {}), name
    tables = [pq.read_table(root / FILES[1]) for root in (folder, GOLDEN)]
    places = [n for n in tables[1].column_names if not n.startswith("stats/")]
    ours, theirs = (table.select(places).to_pydict() for table in tables)
    for place in places:
        exact = not place.endswith("timestamp")
        assert ours[place] == (theirs[place] if exact else pytest.approx(theirs[place])), place
    assert pq.read_table(folder / FILES[2]) == pq.read_table(GOLDEN / FILES[2]).select(
        pq.read_schema(folder / FILES[2]).names
    )


def test_pandas_and_hugging_face_metadata_equal_lerobots(tmp_path):
    folder = tmp_path / "twin"
    golden_twin(folder)
    ours, theirs = [
        json.loads(pq.read_schema(root / FILES[0]).metadata[b"pandas"]) for root in (folder, GOLDEN)
    ]
    for metadata in (ours, theirs):
        assert metadata.pop("creator")["library"] == "pyarrow"
        del metadata["pandas_version"]
    assert ours == theirs
    ours, theirs = [
        json.loads(pq.read_schema(root / FILES[2]).metadata[b"huggingface"])["info"]
        for root in (folder, GOLDEN)
    ]
    assert ours == theirs


def test_info_equals_lerobots(tmp_path):
    folder = tmp_path / "twin"
    golden_twin(folder)
    ours, theirs = [json.loads((root / "meta/info.json").read_text()) for root in (folder, GOLDEN)]
    for name, feature in theirs["features"].items():
        info = ours["features"][name].pop("info", {})
        assert info.keys() == feature.pop("info", {}).keys(), name
    assert ours == theirs


def test_statistics_agree_with_lerobots(tmp_path):
    """All but the quantiles, which lerobot approximates, and the pictures, which it thins out."""
    folder = tmp_path / "twin"
    golden_twin(folder)
    ours, theirs = [LeRobotReader(root).stats for root in (folder, GOLDEN)]
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert set(ours[name]) == set(STATISTICS) == set(theirs[name])
        for key in STATISTICS:
            assert ours[name][key].shape == theirs[name][key].shape, (name, key)
        if "image" not in name:
            for key in ("min", "max", "mean", "std", "count"):
                np.testing.assert_allclose(ours[name][key], theirs[name][key], rtol=1e-5, atol=1e-7)


def test_statistics_against_numpy_on_all_pixels_and_rows(tmp_path):
    rng = np.random.default_rng(1)
    episodes = [episode(rng, length) for length in (3, 7)]
    stats = write(tmp_path / "d", episodes, ["a", "b"]).stats
    actions = np.concatenate([e["action"] for e in episodes]).astype(np.float64)
    pixels = np.concatenate([e["observation.images.image"] for e in episodes]).reshape(-1, 3) / 255
    for name, values in (("action", actions), ("observation.images.image", pixels)):
        flat = {key: value.ravel() for key, value in stats[name].items()}
        np.testing.assert_allclose(flat["mean"], values.mean(0))
        np.testing.assert_allclose(flat["std"], values.std(0))
        np.testing.assert_allclose(flat["min"], values.min(0))
        for key, q in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
            np.testing.assert_allclose(flat[key], np.quantile(values, q, axis=0), atol=1e-12)
        assert flat["count"] == [10]


@given(values=st.lists(st.integers(0, 255), min_size=1, max_size=7))
def test_pixel_statistics_of_few_pixels(values):
    """Few enough that an error of one rank would show."""
    picture = np.repeat(np.array(values, np.uint8)[:, None], 3, axis=1).reshape(1, 1, -1, 3)
    stats = pixel_statistics(pixel_histogram(picture), frames=1)
    scaled = np.array(values) / 255
    for key, q in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
        np.testing.assert_allclose(stats[key], np.full((3, 1, 1), np.quantile(scaled, q)))
    np.testing.assert_allclose(stats["std"], np.full((3, 1, 1), scaled.std()), atol=1e-12)


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "precious").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        LeRobotWriter(tmp_path / "d", fps=10, features=features())
    assert (tmp_path / "d" / "precious").read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("video", [False, True])
def test_nothing_is_left_after_an_error(tmp_path, video):
    rng = np.random.default_rng(0)

    def fail_half_way():
        with LeRobotWriter(tmp_path / "d", fps=10, features=features(video, 64)) as writer:
            writer.add_episode(episode(rng, 3, 64), task="a")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_nothing_appears_before_all_is_written(tmp_path):
    with LeRobotWriter(tmp_path / "d", fps=10, features=features()) as writer:
        writer.add_episode(episode(np.random.default_rng(0), 3), task="a")
        assert not (tmp_path / "d").exists()
    assert (tmp_path / "d/meta/info.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_an_empty_dataset_is_not_written(tmp_path):
    with (
        pytest.raises(UserError, match="no episode"),
        LeRobotWriter(tmp_path / "d", fps=10, features=features()),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_unwritable_place(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="choose another folder"):
        LeRobotWriter(tmp_path / "d", fps=10, features=features())


def test_a_place_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        LeRobotWriter(tmp_path / "file" / "d", fps=10, features=features())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"action": np.zeros((3, 5), np.float32)},
            r"'action': expected shape \(3, 4\), got \(3, 5\)",
        ),
        ({"action": np.zeros((2, 4), np.float32)}, r"equally many frames.*\[2, 3\]"),
        (
            {"action": np.full((3, 4), np.nan, np.float32)},
            "'action' holds a number that is not finite",
        ),
        (
            {"observation.images.image": np.zeros((3, 16, 16, 3))},
            "expected uint8 pictures, got float64",
        ),
        ({"acton": np.zeros((3, 4), np.float32)}, "needs the features"),
    ],
)
def test_episodes_that_do_not_fit(tmp_path, change, message):
    frames = episode(np.random.default_rng(0), 3) | change
    with (
        pytest.raises(UserError, match=message),
        LeRobotWriter(tmp_path / "d", fps=10, features=features()) as writer,
    ):
        writer.add_episode(frames, task="a")


@pytest.mark.parametrize(
    ("name", "feature", "message"),
    [
        ("a/b", vector(2), "may not contain '/'"),
        ("timestamp", vector(1), "written by the writer itself"),
        ("action", Feature("float16", (2,)), "expected a vector of"),
        ("image", Feature("image", (2, 2)), r"expected shape \(height, width, 3\)"),
    ],
)
def test_features_that_the_format_cannot_hold(tmp_path, name, feature, message):
    with pytest.raises(ConfigError, match=message):
        LeRobotWriter(tmp_path / "d", fps=10, features={name: feature})


def test_odd_pictures_do_not_go_into_a_video(tmp_path):
    with (
        pytest.raises(UserError, match="even height and width, got 15 x 15"),
        LeRobotWriter(tmp_path / "d", fps=10, features=features(True, 15)) as writer,
    ):
        writer.add_episode(episode(np.random.default_rng(0), 2, 15), task="a")
