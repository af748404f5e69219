"""A short animated image: one task, the same initial state, before and after practice side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from vla_rl.config.errors import UserError, nearest
from vla_rl.report.page.summary import practice_episodes
from vla_rl.report.run_data import Run, Video, read_run
from vla_rl.runtime.extras import need
from vla_rl.runtime.files import require_writable, whole_file
from vla_rl.runtime.run_folder import training_run
from vla_rl.runtime.video import read_video

Frame = UInt8[np.ndarray, "H W 3"]
PLAYED_AT = 10
"""Frames a second of the image."""
HOLD_SECONDS = 1.5
"""How long the end stays before the film begins again."""
MARGIN, CAPTION, TEXT = 8, 34, 15
INK, PAPER, GOOD, BAD = (32, 33, 36), (255, 255, 255), (24, 128, 56), (197, 34, 31)


class Pair(NamedTuple):
    """One initial state, recorded before and after practice."""

    before: Video
    after: Video


def write_film(run: Path, out: Path | None = None, task: str = "", size: int = 224) -> Path:
    """Write the film of one task of a run that was evaluated with videos; returns its path.

    out: an animated .gif or .webp; by default film.gif in the run folder. task: empty takes the first one that failed
    before and succeeded after. size: height and width of each half in pixels.

    Raises UserError where the run has no videos of both times, or none of `task`.
    """
    folder = training_run(run)
    target = out or folder / "film.gif"
    if target.suffix not in (".gif", ".webp"):
        raise UserError(f"--out: expected a name that ends in .gif or .webp, got {target.name!r}")
    require_writable(target, "file")
    found = read_run(folder)
    pair = _choose(found, task)
    halves = [_scaled(read_video(video.file), size) for video in pair]
    frames = _side_by_side(pair, halves, practice_episodes(found))
    durations = [1000 // PLAYED_AT] * (len(frames) - 1) + [round(1000 * HOLD_SECONDS)]
    with whole_file(target) as aside:
        _save(frames, durations, aside, target.suffix)
    return target


def _choose(run: Run, task: str) -> Pair:
    before = {(v.task, v.initial_state): v for v in run.videos if v.stage == "before"}
    pairs = [
        Pair(before[key], video)
        for video in run.videos
        if video.stage == "after" and (key := (video.task, video.initial_state)) in before
    ]
    if not pairs:
        raise UserError(
            f"{run.folder} has no videos of the same episodes before and after practice: expected some in "
            "eval/videos/before and eval/videos/after. Train with --eval.videos 2"
        )
    tasks = list(dict.fromkeys(pair.after.task for pair in pairs))
    if task and task not in tasks:
        raise UserError(
            f"{run.folder} has no videos of the task {task!r}, but of {', '.join(tasks)}.{nearest(task, tasks)}"
        )
    of_task = [pair for pair in pairs if task in ("", pair.after.task)]
    learned = [pair for pair in of_task if pair.after.success and not pair.before.success]
    return (learned or of_task)[0]


def _scaled(frames: Sequence[Frame], size: int) -> list[Any]:
    """Every second frame (videos have twenty a second) in the film's size."""
    need("PIL", purpose="an animated image")
    from PIL import Image

    chosen = [*frames[:-1:2], frames[-1]]
    return [Image.fromarray(f).resize((size, size), Image.Resampling.LANCZOS) for f in chosen]


def _side_by_side(pair: Pair, halves: Sequence[Sequence[Any]], episodes: int) -> list[Any]:
    """Both episodes from their beginnings; the one that ends first stays as it is."""
    from PIL import Image, ImageDraw

    size = halves[0][0].width
    times = ("before practice", f"after {episodes:,} episodes" if episodes else "after practice")
    titles = [f"{video.task}: {time}" for video, time in zip(pair, times, strict=True)]
    font = _font([*titles, "not solved"], size)
    frames = []
    for at in range(max(map(len, halves))):
        page = Image.new("RGB", (2 * size + 3 * MARGIN, size + 2 * CAPTION), PAPER)
        draw = ImageDraw.Draw(page)
        for column, (video, half, title) in enumerate(zip(pair, halves, titles, strict=True)):
            left = MARGIN + column * (size + MARGIN)
            draw.text((left, 9), title, INK, font)
            page.paste(half[min(at, len(half) - 1)], (left, CAPTION))
            if at >= len(half) - 1:
                word, colour = ("solved", GOOD) if video.success else ("not solved", BAD)
                draw.text((left, size + CAPTION + 8), word, colour, font)
        frames.append(page)
    return frames


def _font(lines: Sequence[str], width: int) -> Any:
    """The font in the largest size up to TEXT in which every line fits into `width` pixels, if any does."""
    from PIL import ImageFont

    fonts = [ImageFont.load_default(size) for size in range(TEXT, 5, -1)]
    fitting = (f for f in fonts if all(f.getlength(line) <= width for line in lines))
    return next(fitting, fonts[-1])


def _save(frames: Sequence[Any], durations: list[int], target: Path, suffix: str) -> None:
    options: dict[str, Any] = {"save_all": True, "duration": durations, "loop": 0}
    options["format"] = suffix.removeprefix(".")
    if suffix == ".gif":
        # one palette for all frames, so that colours do not flicker and unchanged pixels cost nothing; the last frame
        # has every colour of the captions
        palette = frames[-1].quantize(128, dither=0)
        frames = [frame.quantize(palette=palette, dither=0) for frame in frames]
        options["optimize"] = True
    else:
        options |= {"quality": 70, "method": 4}
    frames[0].save(target, append_images=frames[1:], **options)
