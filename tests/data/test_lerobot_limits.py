"""No dataset opens a file outside its folder, or takes more memory than there is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_dataset import (
    DATA,
    EPISODES,
    INFO,
    PNG_CAMERA,
    TASKS,
    VIDEO,
    VIDEO_CAMERA,
    at,
    edit_column,
    refused,
)  # fmt: skip

from vla_rl.config import UserError
from vla_rl.data import demonstrations
from vla_rl.data.demonstrations import load_demonstrations
from vla_rl.data.lerobot import LeRobotReader
from vla_rl.data.lerobot.pictures import encode_png

# --- files that are not what they seem


@pytest.mark.parametrize("name", [INFO, TASKS, EPISODES, DATA, VIDEO])
def test_no_link_is_followed_out_of_the_folder(dataset: Path, name: str):
    outside = dataset.parent / "outside"
    shutil.move(dataset / name, outside)
    (dataset / name).symlink_to(outside)
    refused(dataset, "a link that leads out of it", VIDEO_CAMERA)


def test_the_cache_of_the_hub_is_made_of_links(dataset: Path, original: Path):
    repository = dataset.parent / "datasets--owner--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    for i, file in enumerate(p for p in sorted(dataset.rglob("*")) if p.is_file()):
        link = snapshot / file.relative_to(dataset)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, repository / "blobs" / str(i))
        link.symlink_to(repository / "blobs" / str(i))
    for camera in (PNG_CAMERA, VIDEO_CAMERA):
        one, two = (load_demonstrations(f, camera=camera) for f in (snapshot, original))
        np.testing.assert_array_equal(one.images, two.images)


@pytest.mark.parametrize("file", [TASKS, EPISODES, DATA])
def test_a_table_of_more_rows_than_a_file_can_hold_is_refused(dataset: Path, file: str):
    part = pq.read_table(dataset / file).slice(0, 1).take(pa.array(np.zeros(2**18, np.int64)))
    column = part.column_names[0]
    with pq.ParquetWriter(
        dataset / file, part.select([column]).schema, compression="zstd"
    ) as writer:
        writer.write_table(part.select([column]))
    refused(dataset, r"expected at most 1[\d,]+ rows in [\d,]+ bytes, got 262,144")


def test_a_table_that_unfolds_beyond_measure_is_refused_before_it_does(dataset: Path):
    ends = pa.array([0, *[20_000_000] * 12], pa.int32())
    lists = pa.ListArray.from_arrays(ends, pa.array(np.zeros(20_000_000, np.float32)))
    table = pq.read_table(dataset / DATA)
    table = table.set_column(table.column_names.index("action"), "action", lists)
    pq.write_table(table, dataset / DATA, compression="zstd")
    assert (dataset / DATA).stat().st_size < 50_000
    refused(
        dataset,
        "action: expected a file that unfolds to at most 1000 times .* bytes that unfold to 80 MB",
    )


def test_one_long_text_in_many_rows_is_held_once(dataset: Path):
    rows = 400
    table = pa.table({"task_index": range(rows), "task": ["x" * 200_000] * rows})
    pq.write_table(table, dataset / TASKS, compression="zstd")
    assert (dataset / TASKS).stat().st_size < 20_000
    before = pa.total_allocated_bytes()
    peak_before = pa.default_memory_pool().max_memory()
    refused(dataset, "'task': expected a text of at most 10000 characters")
    del table
    assert pa.default_memory_pool().max_memory() <= max(peak_before, before + 20_000_000)


def test_a_picture_larger_than_described_is_not_decoded(dataset: Path):
    kind = pq.read_schema(dataset / DATA).field(PNG_CAMERA).type
    large = {"bytes": encode_png(np.zeros((2000, 3000, 3), np.uint8)), "path": "x.png"}
    edit_column(dataset / DATA, PNG_CAMERA, at(5, large), kind)
    refused(
        dataset, "'observation.images.image', episode 1, frame 1: the stored picture is damaged"
    )
    small = {"bytes": encode_png(np.zeros((8, 16, 3), np.uint8)), "path": "x.png"}
    edit_column(dataset / DATA, PNG_CAMERA, at(5, small), kind)
    refused(dataset, "episode 1, frame 1: expected a picture of 16 x 16 .*, got 8 x 16")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", None, "missing.png"])
def test_pictures_beside_the_table_lie_in_the_folder(dataset: Path, path: str | None):
    (dataset.parent / "secret.png").write_bytes(encode_png(np.zeros((16, 16, 3), np.uint8)))
    kind = pq.read_schema(dataset / DATA).field(PNG_CAMERA).type
    edit_column(dataset / DATA, PNG_CAMERA, at(5, {"bytes": None, "path": path}), kind)
    message = (
        "a picture is missing" if path == "missing.png" else "expected a path inside its folder"
    )
    refused(dataset, message)


def test_a_playlist_is_no_video(dataset: Path):
    """FFmpeg would open the files that it names, and follow their links."""
    outside = shutil.move(dataset / VIDEO, dataset.parent / "outside.mp4")
    (dataset / VIDEO).with_name("link.mp4").symlink_to(outside)
    (dataset / VIDEO).write_text("ffconcat version 1.0\nfile link.mp4\n")
    refused(dataset, r"file-000\.mp4 is damaged.*Invalid data found", VIDEO_CAMERA)


# --- memory


def test_what_does_not_fit_into_memory_is_said_before_it_is_read(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(demonstrations, "available_memory", lambda: 5000)
    monkeypatch.setattr(
        LeRobotReader, "pictures", lambda *_: pytest.fail("read before it was known to fit")
    )
    with pytest.raises(
        UserError, match=r"12 pictures of 16 x 16 take .* GB, and .* GB of memory are free\. Take"
    ):
        load_demonstrations(dataset, camera=PNG_CAMERA)
    monkeypatch.setattr(demonstrations, "available_memory", lambda: 50_000)
    with pytest.raises(
        UserError, match=r"12 pictures of 64 x 64 .*Give a smaller --image-size \(32 fits\)"
    ):
        load_demonstrations(dataset, camera=VIDEO_CAMERA)


def test_pictures_that_do_not_fit_into_memory_lie_in_a_file_that_nobody_sees(
    dataset: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    whole = load_demonstrations(original, camera=PNG_CAMERA)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(demonstrations, "available_memory", lambda: 5000)
    demos = load_demonstrations(dataset, camera=PNG_CAMERA, scratch=scratch)
    assert isinstance(demos.images, np.memmap)
    np.testing.assert_array_equal(demos.images, whole.images)
    assert list(scratch.iterdir()) == []
    assert "kept in a temporary file" in re.sub(r"\s+", " ", capsys.readouterr().err)
    usage = shutil.disk_usage(scratch)._replace(free=3000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"memory are free, and 0\.0 GB on the disk of"):
        load_demonstrations(dataset, camera=PNG_CAMERA, scratch=scratch)
