"""Frames become square by bars, by a cut, or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from vla_rl.runtime.images import make_square, square_side


def counted(height: int, width: int) -> np.ndarray:
    """Pictures whose pixels tell row and column, none of them black."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows + 1, columns + 1, np.full_like(rows, 9)], -1).astype(np.uint8)[None]


def test_padding_keeps_every_pixel_between_black_bars():
    frame = counted(3, 6)
    padded = make_square(frame, "pad")
    assert padded.shape == (1, 6, 6, 3)
    np.testing.assert_array_equal(padded[:, 1:4], frame)  # of three rows one lies above
    assert padded[:, [0, 4, 5]].max() == 0
    tall = make_square(frame.transpose(0, 2, 1, 3), "pad")
    np.testing.assert_array_equal(tall, padded.transpose(0, 2, 1, 3))


def test_cropping_keeps_the_middle():
    frame = counted(4, 7)
    np.testing.assert_array_equal(make_square(frame, "crop"), frame[:, :, 1:5])
    tall = frame.transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(make_square(tall, "crop"), tall[:, 1:5])


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_squares_stay_and_the_side_is_known_beforehand(fit):
    assert make_square(square := counted(5, 5), fit) is square
    assert square_side(5, 5, fit) == 5
    made = make_square(counted(4, 6), fit)
    assert made.shape[1:3] == ((4, 6) if fit == "stretch" else (square_side(4, 6, fit),) * 2)
