"""Resizing: exact where the answer is known, and close to what Pillow computes."""

import numpy as np
import pytest

from vla_rl.runtime.resizing import resize


def test_the_same_size_is_the_same_picture():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert resize(pictures, 8) is pictures


@pytest.mark.parametrize("size", [3, 8, 12, 31])
def test_one_colour_stays_one_colour_and_turning_commutes(size):
    flat = np.full((1, 12, 12, 3), (7, 130, 255), np.uint8)
    assert (resize(flat, size) == flat[0, 0, 0]).all()
    pictures = np.random.default_rng(1).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        resize(pictures, size)[:, ::-1, ::-1], resize(pictures[:, ::-1, ::-1], size)
    )


@pytest.mark.parametrize(("before", "after"), [((128, 128), 64), ((128, 128), 224), ((40, 56), 24)])
def test_it_agrees_with_pillows_lanczos(before, after):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(2)
    # Pillow rounds and clips between its two passes: keep away from the ends
    picture = rng.integers(90, 166, (*before, 3), dtype=np.uint8)
    theirs = image.fromarray(picture).resize((after, after), image.Resampling.LANCZOS)
    difference = resize(picture[None], after)[0].astype(int) - np.asarray(theirs)
    assert np.abs(difference).max() <= 1
