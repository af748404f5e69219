from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from vla_rl.config import UserError
from vla_rl.runtime.video import filmstrip, jpeg, read_video, write_video


def frames(count: int, height: int = 64, width: int = 64) -> list[np.ndarray]:
    """Frames of one colour each, from dark to bright red."""
    return [
        np.full((height, width, 3), (20 + 200 * i // max(count - 1, 1), 40, 90), dtype=np.uint8)
        for i in range(count)
    ]


def test_a_video_is_what_browsers_play(tmp_path: Path):
    write_video(tmp_path / "v.mp4", frames(12), fps=5)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.frames) == (64, 64, 12)
        assert stream.average_rate == 5
    head = (tmp_path / "v.mp4").read_bytes()
    assert head.index(b"moov") < head.index(b"mdat"), "the index must come first (fast start)"


def test_frames_survive_in_order_and_colour(tmp_path: Path):
    made = frames(9)
    write_video(tmp_path / "v.mp4", made, fps=10)
    back = read_video(tmp_path / "v.mp4")
    assert len(back) == 9
    for before, after in zip(made, back, strict=True):
        assert np.abs(before.astype(int) - after.astype(int)).max() <= 6


@pytest.mark.parametrize(("height", "width"), [(65, 64), (64, 63), (33, 47)])
def test_odd_sizes_are_padded_with_their_last_row_and_column(
    tmp_path: Path, height: int, width: int
):
    made = frames(3, height, width)
    write_video(tmp_path / "v.mp4", made, fps=5)
    back = read_video(tmp_path / "v.mp4")
    assert back[0].shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(back[2].astype(int) - made[2][0, 0].astype(int)).max() <= 6


@pytest.mark.parametrize(
    ("wrong", "fps"),
    [
        ([], 5),
        (frames(2), 0),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], 5),
        ([np.zeros((8, 8, 3), np.float32)], 5),
        ([np.zeros((8, 8), np.uint8)], 5),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, wrong: list[np.ndarray], fps: float):
    with pytest.raises(ValueError, match=r"expected|positive|needs"):
        write_video(tmp_path / "v.mp4", wrong, fps)


def test_a_damaged_file_is_a_user_error(tmp_path: Path):
    (tmp_path / "v.mp4").write_bytes(b"no video at all")
    with pytest.raises(UserError, match=r"v\.mp4"):
        read_video(tmp_path / "v.mp4")


def test_filmstrip_shows_first_and_last_with_gaps_between():
    numbered = [np.full((4, 6, 3), i, dtype=np.uint8) for i in range(11)]
    strip = filmstrip(numbered, 3)
    assert strip.shape == (4, 3 * 6 + 2 * 2, 3)
    assert [int(strip[0, x, 0]) for x in (0, 8, 16)] == [0, 5, 10]
    assert int(strip[0, 6, 0]) == int(strip[0, 15, 0]) == 128


def test_filmstrip_of_few_frames_shows_each_once():
    assert filmstrip(frames(2, 4, 4), 6).shape == (4, 2 * 4 + 2, 3)
    assert filmstrip(frames(1, 4, 4), 6).shape == (4, 4, 3)
    with pytest.raises(ValueError, match="expected a frame"):
        filmstrip([], 6)


def test_jpeg_is_one():
    assert jpeg(frames(1)[0])[:3] == b"\xff\xd8\xff"
