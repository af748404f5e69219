"""Images of a process reward model: is its probability right, and what does it think of an episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from vla_rl.functional import Reliability
from vla_rl.report.figures.saving import save_figure
from vla_rl.runtime.extras import need
from vla_rl.runtime.video import write_video

FILM_COLUMNS = 10
LEFT, WIDE = 0.06, 0.92  # of a figure's width
VIDEO_SLOWDOWN = 4.0
"""Videos of episodes of a second or two play so many times slower than real time."""


@dataclass(frozen=True)
class ScoredEpisode:
    """One episode and the probability of the positive answer at each turn."""

    title: str
    question: str
    images: UInt8[np.ndarray, "T H W 3"]
    probabilities: Float32[np.ndarray, " T"]
    seconds: Float64[np.ndarray, " T"]  # robot time of each turn
    positive: Bool[np.ndarray, " T"]  # labels
    key_frames: Int64[np.ndarray, " K"]  # turns
    milestones: Int64[np.ndarray, " S"]  # turns


def draw_reliability(path: Path, diagrams: Mapping[str, Reliability]) -> None:
    """Share of positives against predicted probability, the counts below, one colour for each set of episodes."""
    plt = _pyplot()
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(4.8, 5.2), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    top.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="calibrated")
    for number, (name, found) in enumerate(diagrams.items()):
        colour, full = f"C{number}", found.counts > 0
        top.plot(
            found.predicted[full],
            found.observed[full],
            "o-",
            color=colour,
            label=name,
            markersize=4,
        )
        width = (found.edges[1] - found.edges[0]) / len(diagrams)
        left = found.edges[:-1] + (number + 0.5) * width
        bottom.bar(left, found.counts, width * 0.9, color=colour)
    top.set(ylabel="share of positives, or progress", xlim=(0, 1), ylim=(0, 1))
    top.legend(frameon=False)
    bottom.set(xlabel="predicted", ylabel="turns")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    save_figure(figure, path, dpi=130)
    plt.close(figure)


def draw_scores(path: Path, scored_episode: ScoredEpisode) -> None:
    """The probability over time above a strip of what was seen then."""
    plt = _pyplot()
    shown = _columns(len(scored_episode.images))
    figure = plt.figure(figsize=(12, 4.8))
    axes = figure.add_axes((LEFT, 0.43, WIDE, 0.44))
    _curve(axes, scored_episode)
    axes.set_title(f"{scored_episode.title}\n{scored_episode.question}", fontsize=10)
    axes.legend(fontsize=8, loc="best")
    cell = WIDE / FILM_COLUMNS
    for column, at in enumerate(shown):
        image = figure.add_axes((LEFT + column * cell, 0.01, cell * 0.97, 0.24))
        image.imshow(scored_episode.images[at])
        image.set_title(f"{scored_episode.seconds[at]:.2f} s", fontsize=8)
        image.set_axis_off()
    save_figure(figure, path, dpi=110)
    plt.close(figure)


def film_scores(path: Path, scored_episode: ScoredEpisode) -> None:
    """An mp4: the curve with a moving line above, the image of that moment below."""
    plt = _pyplot()
    figure = plt.figure(figsize=(5.12, 7.2), dpi=100)
    top = figure.add_axes((0.13, 0.72, 0.84, 0.21))
    bottom = figure.add_axes((0.02, 0.01, 0.96, 0.63))
    _curve(top, scored_episode)
    top.set_title(f"{scored_episode.title}\n{scored_episode.question}", fontsize=8)
    cursor = top.axvline(0, color="C3", linewidth=1.5)
    image = bottom.imshow(scored_episode.images[0])
    bottom.set_axis_off()
    frames = []
    for at, seconds in enumerate(scored_episode.seconds):
        cursor.set_xdata([seconds, seconds])
        image.set_data(scored_episode.images[at])
        figure.canvas.draw()
        frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    plt.close(figure)
    step = scored_episode.seconds[1] - scored_episode.seconds[0] if len(frames) > 1 else 0.1
    hold = round(VIDEO_SLOWDOWN)
    write_video(path, [*frames, *frames[-1:] * hold], 1.0 / (VIDEO_SLOWDOWN * float(step)))


def _curve(axes: Any, scored_episode: ScoredEpisode) -> None:
    seconds = scored_episode.seconds
    step = seconds[1] - seconds[0] if len(seconds) > 1 else 0.1
    for at in np.flatnonzero(scored_episode.positive):
        axes.axvspan(
            seconds[at] - step / 2, seconds[at] + step / 2, color="C2", alpha=0.15, linewidth=0
        )
    axes.plot(
        seconds, scored_episode.probabilities, "o-", color="C0", markersize=4, label="reward model"
    )
    for number, at in enumerate(scored_episode.milestones):
        name = "gripper changes" if number == 0 else None
        axes.axvline(seconds[at], color="C1", linestyle="--", linewidth=1, label=name)
    keys = scored_episode.key_frames
    axes.plot(seconds[keys], np.full(len(keys), 1.02), "v", color="C2", markersize=6, clip_on=False,
              label="key frames; shaded: labelled positive")  # fmt: skip
    axes.set(
        ylim=(0, 1.05), xlim=(-step / 2, seconds[-1] + step / 2),
        xlabel="s", ylabel="p(positive answer)",
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _columns(length: int) -> list[int]:
    """At most FILM_COLUMNS turns, evenly spread, the first and the last among them."""
    count = min(FILM_COLUMNS, length)
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def _pyplot() -> Any:
    need("matplotlib", purpose="a plot")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
