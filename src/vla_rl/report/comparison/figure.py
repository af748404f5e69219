"""A comparison as pictures: learning curves with bands, and a panel for each task."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.report.comparison.curves import COSTS, Cost, band, held_out_during
from vla_rl.report.comparison.study import Comparison, GroupSummary, RunSummary
from vla_rl.report.figures.saving import save_figure
from vla_rl.report.run_data import MODES, STAGES
from vla_rl.runtime.extras import need

_COLUMNS = 5
_MOST_TASKS = 60
_UNITS: dict[Cost, str] = {"episodes": "episodes practised", "minutes": "minutes of practice"}


def draw_comparison(comparison: Comparison, path: Path, title: str = "") -> None:
    """Training success and held-out success, against episodes and against minutes.

    A thin line is a run, a thick one the mean of a group over the range that its runs share, a band reaches from its
    lowest run to its highest. Held-out success has Wilson's 95 % intervals before and after practice: filled for greedy
    play, hollow for sampled play.
    """
    plt = _pyplot()
    figure, grid = plt.subplots(
        2, 2, figsize=(11, 7.6), layout="constrained", sharex="col", sharey=True
    )
    for column, cost in enumerate(COSTS):
        for index, group in enumerate(comparison.groups):
            _training(grid[0, column], comparison, group, cost, f"C{index % 10}")
            _held_out(grid[1, column], comparison, index, group, cost)
        grid[1, column].set_xlabel(_UNITS[cost])
    grid[0, 0].set_ylabel("success in training, % (sampled)")
    grid[1, 0].set_ylabel("held-out success, %\nfilled: greedy, hollow: sampled")
    for axes in grid.flat:
        axes.set_ylim(0, 103)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels) or 1), frameon=False
    )
    if title:
        figure.suptitle(plain(title), fontsize=10)
    save_figure(figure, path, dpi=130)
    plt.close(figure)


def _training(
    axes: Any, comparison: Comparison, group: GroupSummary, cost: Cost, color: str
) -> None:
    window = comparison.window
    for run in group.runs:
        spent, running = run.curve.smoothed(window, cost)
        style = "-" if run.finished else ":"
        axes.plot(spent, 100 * running, color=color, alpha=0.35, linewidth=0.9, linestyle=style)
    counted = [run for run in group.runs if run.finished] or list(group.runs)
    mean = band([run.curve for run in counted], window, cost)
    label = f"{plain(group.name)} ({len(group.runs)} run{'s' if len(group.runs) > 1 else ''})"
    if mean is None:
        axes.plot([], [], color=color, linewidth=2, label=label)
        return
    axes.plot(mean.spent, 100 * mean.mean, color=color, linewidth=2, label=label)
    if len(counted) > 1:
        axes.fill_between(
            mean.spent, 100 * mean.low, 100 * mean.high, color=color, alpha=0.15, linewidth=0
        )


def _held_out(
    axes: Any, comparison: Comparison, index: int, group: GroupSummary, cost: Cost
) -> None:
    color = f"C{index % 10}"
    states = max((len(one.states) for one in comparison.held_out.values()), default=0)
    runs = [run for run in group.runs if run.finished] or list(group.runs)
    tracks = [held_out_during(run.run, cost, states) for run in runs]
    for track in tracks:
        if len(track) > 1:
            xs, ys = zip(*((p.spent, 100 * p.success) for p in track), strict=True)
            axes.plot(xs, ys, color=color, alpha=0.35, linewidth=0.9, marker=".", markersize=3)
    known = [{point.iteration: point for point in track} for track in tracks if len(track) > 1]
    shared = sorted(set.intersection(*map(set, known))) if known else []
    if len(shared) > 1:
        mean = [[(t[i].spent, 100 * t[i].success) for t in known] for i in shared]
        axes.plot(*np.mean(mean, axis=1).T, color=color, linewidth=1.8)
    end = _end(runs, cost)
    for mode in MODES:
        for stage, spent in zip(STAGES, (0.0, end), strict=True):
            success = group.success.get((stage, mode))
            if success is None or spent is None:
                continue
            middle, (low, high) = 100 * success.mean, success.over_episodes
            error = np.clip([[middle - 100 * low], [100 * high - middle]], 0, None)
            face = color if mode == "greedy" else "white"
            axes.errorbar(
                spent, middle, yerr=error, fmt="o", color=color, markerfacecolor=face, capsize=3,
                markersize=6, clip_on=False, zorder=3,
            )  # fmt: skip


def _end(runs: Sequence[RunSummary], cost: Cost) -> float | None:
    spent = [run.episodes if cost == "episodes" else run.minutes for run in runs]
    known = [value for value in spent if value is not None]
    return float(np.mean(known)) if known else None


def draw_tasks(comparison: Comparison, path: Path, title: str = "") -> bool:
    """A panel for each task: success in training against episodes, and on held-out states before and after.

    False where nothing is known of tasks, or there are too many of them to be seen.
    """
    names = [task for group in comparison.groups for task in group.tasks]
    names += [task for g in comparison.groups for r in g.runs for task in r.run.tasks]
    tasks = list(dict.fromkeys(names))
    if not 0 < len(tasks) <= _MOST_TASKS:
        return False
    plt = _pyplot()
    columns = min(_COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.2 * columns + 0.4, 2.0 * rows + 0.6), layout="constrained",
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for axes, task in zip(grid.flat, tasks, strict=False):
        for index, group in enumerate(comparison.groups):
            _task(axes, group, task, f"C{index % 10}")
        axes.set_title(textwrap.fill(plain(task.replace("_", " ")), 28), fontsize=8)
        axes.set_ylim(0, 103)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    for index, group in enumerate(comparison.groups):
        grid[0, 0].plot([], [], color=f"C{index % 10}", label=plain(group.name))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False,
        fontsize=8,
    )  # fmt: skip
    figure.supxlabel(
        "episodes practised (lines: training, sampled; dots: held-out, greedy)", fontsize=8
    )
    figure.supylabel("success, %", fontsize=8)
    if title:
        figure.suptitle(plain(title), fontsize=9)
    save_figure(figure, path, dpi=130)
    plt.close(figure)
    return True


def _task(axes: Any, group: GroupSummary, task: str, color: str) -> None:
    for run in group.runs:
        metrics = run.run.metrics
        # the curriculum's window is smoother than the episodes of one iteration
        success = metrics.get(f"curriculum/success/{task}")
        success = metrics.get(f"success/{task}") if success is None else success
        episodes = metrics.get("total/episodes")
        if success is not None and episodes is not None:
            known = np.isfinite(success) & np.isfinite(episodes)
            axes.plot(episodes[known], 100 * success[known], color=color, alpha=0.6, linewidth=0.9)
    found, end = group.tasks.get(task, {}), _end(group.runs, "episodes")
    for stage, spent in zip(STAGES, (0.0, end), strict=True):
        if stage in found and spent is not None:
            axes.plot(spent, 100 * found[stage], "o", color=color, markersize=5, clip_on=False)


def plain(text: str) -> str:
    """`text` as matplotlib shows it word by word: dollars begin formulas, an underscore in front hides a label."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def _pyplot() -> Any:
    need("matplotlib", purpose="a plot")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
