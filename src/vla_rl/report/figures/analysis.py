"""Pictures of an analysis: where actions lie, episode length over training, kinds of failures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from vla_rl.evaluation.failures import MEANING
from vla_rl.report.analysis.lengths import LENGTH, SUCCESS
from vla_rl.report.analysis.record import Failures, Lengths, Stage
from vla_rl.report.figures.saving import save_figure
from vla_rl.report.run_data import Run
from vla_rl.runtime.extras import need

CELLS = 24
"""Of a density, along each side."""
ROWS_OF_PAIRS = 6
DRAWN = 8
"""Dimensions of an action of which pairs are drawn."""
COLORS: Mapping[Stage, str] = {"before": "C7", "after": "C0"}


def draw_coverage(
    actions: Mapping[Stage, Float64[np.ndarray, "m A"]], names: Sequence[str], path: Path
) -> None:
    """Density of each pair of action dimensions, before practice above after it; one scale for both.

    Of many dimensions those that are `busiest` alone, since a body of 17 joints has 136 pairs.
    """
    stages: list[Stage] = [stage for stage in ("before", "after") if stage in actions]
    pairs = list(itertools.combinations(busiest(actions), 2))
    edges = np.linspace(-1, 1, CELLS + 1)

    def draw(plt: Any) -> Any:
        blocks = -(-len(pairs) // ROWS_OF_PAIRS)
        columns = min(len(pairs), ROWS_OF_PAIRS)
        figure, grid = plt.subplots(
            blocks * len(stages), columns, squeeze=False, layout="constrained",
            figsize=(1.6 * columns + 0.6, 1.75 * blocks * len(stages)),
        )  # fmt: skip
        for axes in grid.flat:
            axes.set_axis_off()
        for place, (first, second) in enumerate(pairs):
            shares = {s: _density(actions[s], first, second, edges) for s in stages}
            top = max(float(share.max()) for share in shares.values())
            for row, stage in enumerate(stages):
                axes = grid[place // columns * len(stages) + row, place % columns]
                axes.set_axis_on()
                # the square root shows thin and dense parts alike
                axes.imshow(
                    np.sqrt(shares[stage].T), origin="lower", extent=(-1, 1, -1, 1), cmap="magma",
                    vmin=0, vmax=np.sqrt(top) or 1,
                )  # fmt: skip
                axes.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])
                axes.tick_params(labelsize=6)
                axes.set_title(f"{stage}: {names[first]}, {names[second]}", fontsize=7)
        return figure

    _write(draw, path)


def busiest(actions: Mapping[Stage, Float64[np.ndarray, "m A"]]) -> list[int]:
    """The `DRAWN` dimensions in which actions vary most, in their order."""
    varied = np.concatenate([np.clip(values, -1, 1) for values in actions.values()]).std(axis=0)
    return sorted(np.argsort(-varied, kind="stable")[:DRAWN].tolist())


def _density(
    actions: Float64[np.ndarray, "m A"], first: int, second: int, edges: Float64[np.ndarray, " e"]
) -> Float64[np.ndarray, "c c"]:
    inside = np.clip(actions, -1, 1)
    counts, _, _ = np.histogram2d(inside[:, first], inside[:, second], bins=[edges, edges])
    return counts / max(1, len(actions))


def draw_lengths(run: Run, lengths: Lengths, path: Path) -> None:
    """Episode length and success over training, plateaus shaded, changes of the curriculum as lines."""
    rows = [(LENGTH, "episode length", "turns"), (SUCCESS, "success rate", "share")]

    def draw(plt: Any) -> Any:
        figure, grid = plt.subplots(2, 1, sharex=True, figsize=(7.2, 4.8), layout="constrained")
        for axes, (key, measure, unit) in zip(grid, rows, strict=True):
            column = run.metrics.get(key)
            if column is not None:
                axes.plot(run.metrics.index, column, color="C0", linewidth=1.2)
            for plateau in lengths.plateaus:
                if plateau.measure == measure:
                    axes.axvspan(plateau.first, plateau.last, color="C1", alpha=0.2, linewidth=0)
            for change in lengths.changes:
                axes.axvline(change.iteration, color="0.5", linewidth=0.8, linestyle=":")
            axes.set_ylabel(f"{measure}, {unit}", fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        grid[1].set_xlabel("iteration (shaded: plateaus; dotted: the curriculum turns)", fontsize=8)
        return figure

    _write(draw, path)


def draw_failures(failures: Failures, path: Path) -> None:
    """Share of all episodes that failed in each way, with Wilson's intervals."""
    found = {kind.kind for stage in failures.stages for kind in stage.kinds}
    kinds = [kind for kind in MEANING if kind in found]

    def draw(plt: Any) -> Any:
        figure, axes = plt.subplots(figsize=(7.2, 0.45 * len(kinds) + 1.2), layout="constrained")
        height = 0.8 / len(failures.stages)
        for place, stage in enumerate(failures.stages):
            shares = {kind.kind: kind.share for kind in stage.kinds}
            for row, kind in enumerate(kinds):
                share = shares.get(kind)
                if share is None:
                    continue
                error = [[share.value - share.low], [share.high - share.value]]
                axes.barh(
                    row + place * height, 100 * share.value, height * 0.9, color=COLORS[stage.stage],
                    xerr=100 * np.clip(error, 0, None), error_kw={"linewidth": 0.8},
                    label=stage.stage if kind == next(iter(shares)) else None,
                )  # fmt: skip
        axes.set_yticks(np.arange(len(kinds)) + 0.4 - height / 2, kinds, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("% of all episodes (95 % intervals)", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        return figure

    _write(draw, path)


def _write(draw: Callable[[Any], Any], path: Path) -> None:
    need("matplotlib", purpose="a plot")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = draw(plt)
    save_figure(figure, path, dpi=110)
    plt.close(figure)
