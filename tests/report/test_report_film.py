"""The film of one task before and after practice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vla_rl.config import UserError
from vla_rl.report.figures.film import write_film

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@pytest.mark.parametrize("name", ["film.gif", "film.webp"])
def test_the_film_shows_both_episodes_to_their_ends(example: Path, tmp_path: Path, name: str):
    with Image.open(write_film(example, tmp_path / name, size=64)) as film:
        assert film.is_animated
        assert film.size == (2 * 64 + 3 * 8, 64 + 2 * 34)
        assert film.info["loop"] == 0
        first = film.convert("RGB").tobytes()
        film.seek(film.n_frames - 1)
        assert film.convert("RGB").tobytes() != first
        assert film.info["duration"] >= 1000  # the end stays


def test_captions_end_at_the_edge_of_their_picture(example: Path, tmp_path: Path):
    for size in (128, 224):
        with Image.open(write_film(example, tmp_path / "film.gif", size=size)) as film:
            captions = np.asarray(film.convert("L"))[:34]
        margins = [captions[:, :8], captions[:, 8 + size : 16 + size], captions[:, -8:]]
        assert min(margin.min() for margin in margins) > 240
        assert captions[:, 8 : 8 + size].min() < 100
        assert captions[:, 16 + size : -8].min() < 100


def test_a_task_that_was_learned_is_shown_unless_another_is_named(example: Path, tmp_path: Path):
    index = json.loads((example / "eval/videos/after/index.json").read_text())
    task = index[-1]["task"]
    assert write_film(example, tmp_path / "a.gif", task, size=32).stat().st_size > 1000
    with pytest.raises(UserError, match=r"no videos of the task 'nothing', but of"):
        write_film(example, tmp_path / "b.gif", "nothing")


def test_what_cannot_be_shown_is_one_line(example: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"ends in \.gif or \.webp, got 'film\.mp4'"):
        write_film(example, tmp_path / "film.mp4")
    copy = tmp_path / "run"
    shutil.copytree(example, copy)
    shutil.rmtree(copy / "eval" / "videos" / "before")
    with pytest.raises(UserError, match=r"no videos of the same episodes.*--eval\.videos 2"):
        write_film(copy, tmp_path / "c.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        write_film(example, tmp_path / "file" / "film.gif", size=32)
