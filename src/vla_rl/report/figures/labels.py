"""One image of a trajectory and its labels: what was seen on top, what the labels were made of below, one time axis.

A person looks from top to bottom: is the hand where a green cell says that it is about to get somewhere?
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.config import LabelConfig
from vla_rl.report.figures.saving import save_figure
from vla_rl.rewards.process.labels import Labels, speed_thresholds
from vla_rl.rewards.process.robot_signals import RobotSignals
from vla_rl.rewards.trajectories import Trajectory
from vla_rl.runtime.extras import need

WIDTH = 15.0  # inches, the margins included
MOST_FRAMES = 16
POSITIVE, NEGATIVE, UNKNOWN = "#1b9e77", "#d95f5f", "#bdbdbd"
MILESTONE, KEY_FRAME, INK = "#7b3294", "#e08214", "#333333"
_LEFT, _RIGHT = 0.075, 0.985  # of the width
_PANELS = (0.34, 0.9, 0.9, 0.9)  # inches: labels, progress, gripper, speed


def draw_labels(
    path: Path, trajectory: Trajectory, labels: Labels, config: LabelConfig, robot: RobotSignals
) -> None:
    """Write the image as a PNG file. UserError where matplotlib is missing."""
    plt = _pyplot()
    columns, stride = _columns(len(trajectory))
    ends = _ends(trajectory, labels, config)
    strip = WIDTH * (_RIGHT - _LEFT) / columns
    height = strip + sum(_PANELS) + 2.0
    figure, axes = plt.subplots(
        1 + len(_PANELS), 1, figsize=(WIDTH, height), sharex=True,
        gridspec_kw={"height_ratios": [strip, *_PANELS], "hspace": 0.12},
    )  # fmt: skip
    try:
        figure.subplots_adjust(_LEFT, 0.85 / height, _RIGHT, 1 - 0.75 / height)
        figure.align_ylabels(axes[2:])
        _title(figure, trajectory, labels, height)
        _draw_frames(axes[0], trajectory, labels, stride)
        _draw_answers(axes[1], trajectory, labels)
        _draw_progress(axes[2], trajectory, labels)
        _draw_gripper(axes[3], trajectory, config, robot)
        _draw_speed(axes[4], trajectory, config, robot)
        for panel in axes[2:]:
            _mark(panel, trajectory, labels, ends)
        _draw_legend(figure, trajectory, config)
        axes[-1].set_xlim(0, columns * stride * trajectory.turn_seconds)
        axes[-1].set_xlabel("robot time, s")
        save_figure(figure, path, dpi=110)
    finally:
        plt.close(figure)


def _columns(length: int) -> tuple[int, int]:
    """How many frames stand side by side, and how many turns each stands for."""
    stride = -(-length // MOST_FRAMES)
    return max(-(-length // stride), 8), stride


def _ends(trajectory: Trajectory, labels: Labels, config: LabelConfig) -> set[int]:
    """The key frames that are the end of a segment; the others are pauses."""
    if config.scheme == "segments":
        return set(labels.key_frames.tolist())
    if not (trajectory.success and config.ends_are_key):
        return set()
    return {*labels.milestones.tolist(), len(trajectory) - 1}


def _title(figure: Any, trajectory: Trajectory, labels: Labels, height: float) -> None:
    outcome = "success" if trajectory.success else "FAILURE"
    origin = {"expert": "demonstration", "policy": "policy's play"}[trajectory.source]
    first = f"{trajectory.task}, initial state {trajectory.initial_state}: {outcome} ({origin})"
    counts = f"{int(labels.positive.sum())} positive, {int(labels.negative.sum())} negative"
    left_out = int((~labels.known).sum())
    second = (
        f"“{textwrap.shorten(trajectory.instruction, 90)}”   {len(trajectory)} turns every "
        f"{1000 * trajectory.turn_seconds:g} ms: {counts}{f', {left_out} left out' if left_out else ''}"
    )
    colour = INK if trajectory.success else NEGATIVE
    figure.text(_LEFT, 1 - 0.30 / height, first, fontsize=13, weight="bold", color=colour)
    figure.text(_LEFT, 1 - 0.58 / height, second, fontsize=10, color=INK)


def _draw_frames(panel: Any, trajectory: Trajectory, labels: Labels, stride: int) -> None:
    """Frame t begins where turn t does; frames are as wide as the turns they stand for."""
    width = stride * trajectory.turn_seconds
    keys = set(labels.key_frames.tolist())
    for t in range(0, len(trajectory), stride):
        left = t * trajectory.turn_seconds
        # of the turns that share a frame, a key frame is the one to see
        shown = next((k for k in range(t, min(t + stride, len(trajectory))) if k in keys), t)
        panel.imshow(
            trajectory.images[shown], extent=(left, left + width, 0, 1), aspect="auto", zorder=1
        )
        if shown in keys:
            inset = 0.02 * width
            panel.add_patch(
                _rectangle(left + inset, 0.02, width - 2 * inset, 0.96, edgecolor=KEY_FRAME, linewidth=3)
            )  # fmt: skip
    panel.set_ylim(0, 1)
    panel.axis("off")


def _draw_answers(panel: Any, trajectory: Trajectory, labels: Labels) -> None:
    """One cell a turn: + positive, - negative, empty where it is left out."""
    step = trajectory.turn_seconds
    size = min(11.0, 300 / len(trajectory))
    for t in range(len(trajectory)):
        known, positive = bool(labels.known[t]), bool(labels.positive[t])
        colour = (POSITIVE if positive else NEGATIVE) if known else UNKNOWN
        panel.add_patch(
            _rectangle(t * step, 0, step, 1, facecolor=colour, edgecolor="white", linewidth=0.8)
        )
        sign = ("+" if positive else "−") if known else ""
        if size >= 4:
            panel.text(
                (t + 0.5) * step, 0.48, sign, ha="center", va="center", fontsize=size, color="white", weight="bold"
            )  # fmt: skip
    panel.set_ylim(0, 1)
    panel.set_yticks([0.5], ["label"])
    panel.tick_params(length=0)
    for side in panel.spines.values():
        side.set_visible(False)


def _draw_progress(panel: Any, trajectory: Trajectory, labels: Labels) -> None:
    _steps(panel, labels.progress, trajectory, INK)
    panel.set_ylim(-0.05, 1.08)
    panel.set_yticks([0, 0.5, 1])
    panel.set_ylabel("progress")


def _draw_gripper(
    panel: Any, trajectory: Trajectory, config: LabelConfig, robot: RobotSignals
) -> None:
    opening = robot.gripper_opening(trajectory, config.gripper)
    measured = robot.has_opening(trajectory) and config.gripper != "commanded"
    _steps(panel, opening, trajectory, INK)
    panel.set_ylim(-0.08, 1.12)
    panel.set_yticks([0, 1], ["closed", "open"])
    how = "measured" if measured else "not known" if robot.unknown_body else "commanded"
    panel.set_ylabel(f"gripper\n({how})")


def _draw_speed(
    panel: Any, trajectory: Trajectory, config: LabelConfig, robot: RobotSignals
) -> None:
    speed = robot.speed(trajectory)
    _steps(panel, speed, trajectory, INK)
    if config.scheme == "keyframe":
        rest, leave = speed_thresholds(speed, config)
        panel.axhline(rest, color=KEY_FRAME, linewidth=1, linestyle="--")
        panel.axhline(leave, color=KEY_FRAME, linewidth=1, linestyle=":")
    panel.set_ylim(0, 1.12 * max(float(np.nan_to_num(speed).max()), 1e-3))
    if robot.unknown_body:
        panel.set_ylabel("speed\n(not known)")
        return
    unit = "m/s" if robot.proprio_size else "action units"
    panel.set_ylabel(f"speed\n({unit}{'' if robot.has_position(trajectory) else ', commanded'})")


def _steps(panel: Any, values: np.ndarray, trajectory: Trajectory, colour: str) -> None:
    """A value a turn, level from its beginning to the next one's."""
    times = np.arange(len(values) + 1) * trajectory.turn_seconds
    panel.step(times, [*values, values[-1]], where="post", color=colour, linewidth=1.6, zorder=3)


def _mark(panel: Any, trajectory: Trajectory, labels: Labels, ends: set[int]) -> None:
    """Labels as shades, milestones as lines, key frames as signs at the foot, the same in every panel."""
    step = trajectory.turn_seconds
    for t in range(len(trajectory)):
        if not labels.known[t] or labels.positive[t]:
            colour = POSITIVE if labels.known[t] else UNKNOWN
            panel.axvspan(t * step, (t + 1) * step, color=colour, alpha=0.16, linewidth=0, zorder=0)
    for m in labels.milestones:
        panel.axvline(m * step, color=MILESTONE, linewidth=2, zorder=2)
    low = panel.get_ylim()[0]
    for key in labels.key_frames.tolist():
        at, sign = (key + 0.5) * step, "s" if key in ends else "^"
        panel.plot([at], [low], sign, color=KEY_FRAME, markersize=9, clip_on=False, zorder=4)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _draw_legend(figure: Any, trajectory: Trajectory, config: LabelConfig) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keyframe = config.scheme == "keyframe"
    signs: list[Any] = [
        Patch(color=POSITIVE, label="positive: leads to a key frame" if keyframe else "positive"),
        Patch(color=NEGATIVE, label="negative"),
        Patch(color=UNKNOWN, label="left out"),
    ]
    if trajectory.success:
        signs.append(_sign("s", "key frame: end of a segment"))
    if keyframe:
        signs.append(
            _sign("^", "key frame: pause" if trajectory.success else "pause (led nowhere)")
        )
    text = "milestone: gripper changes" if keyframe else "segment begins"
    signs.append(Line2D([], [], color=MILESTONE, linewidth=2, label=text))
    if keyframe:
        signs += [
            Line2D([], [], color=KEY_FRAME, linewidth=1, linestyle="--", label="at rest below"),
            Line2D([], [], color=KEY_FRAME, linewidth=1, linestyle=":", label="moving above"),
        ]
    figure.legend(
        handles=signs, loc="lower center", ncol=len(signs), fontsize=8.5, frameon=False,
        handlelength=1.4, columnspacing=1.3,
    )  # fmt: skip


def _sign(marker: str, text: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker=marker, linestyle="", color=KEY_FRAME, markersize=8, label=text)


def _rectangle(left: float, bottom: float, width: float, height: float, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    looks: dict[str, Any] = {"facecolor": "none", "zorder": 2} | style
    return Rectangle((left, bottom), width, height, **looks)


def _pyplot() -> Any:
    need("matplotlib", purpose="an image of labels")
    import matplotlib

    matplotlib.use("Agg")  # files only: no window is opened, none is needed
    import matplotlib.pyplot as plt

    return plt
