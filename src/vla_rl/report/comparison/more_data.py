"""Practice against more demonstrations: a table, a JSON file and a picture, by simulator steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vla_rl.config.errors import UserError
from vla_rl.report.comparison.curves import curve_of, window_for
from vla_rl.report.comparison.held_out import (
    Difference,
    HeldOut,
    Success,
    comparable,
    difference,
    success_of,
)
from vla_rl.report.comparison.selection import Group
from vla_rl.report.comparison.table import difference_text, success_text, table
from vla_rl.report.figures.saving import save_figure
from vla_rl.report.run_data import MODES, Mode, Run
from vla_rl.runtime.extras import need
from vla_rl.runtime.files import write_json, write_text

TABLE, VALUES, FIGURE = "data.md", "data.json", "data.png"


Kind = Literal["fine-tuning", "start", "practice"]
"""Fine-tuning on demonstrations; the shorter one from which practice starts; practice."""
_TITLES: dict[Kind, str] = {
    "fine-tuning": "fine-tuning on",
    "start": "start of practice, on",
    "practice": "practice after",
}


class Row(NamedTuple):
    """Runs of one kind, one for each seed."""

    kind: Kind
    size: int
    """Demonstrations of each task."""
    demonstrated: int
    """Their simulator steps, all tasks together."""
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return f"{_TITLES[self.kind]} {self.size}"


class Result(NamedTuple):
    """What a row came to."""

    row: Row
    practised: float
    """Mean simulator steps of practice."""
    success: dict[Mode, Success]
    to_own: dict[Mode, Difference]
    """Practice: to what it started from."""
    to_most: dict[Mode, Difference]
    """To the fine-tuning on most demonstrations."""


def write_more_data(rows: Sequence[Row], out: Path, title: str) -> Path:
    """Write data.md, data.json and data.png into `out`; returns the path of the table.

    Raises UserError where an evaluation is missing, damaged or made otherwise than the rest.
    """
    notes: list[str] = [problem for row in rows for run in row.runs for problem in run.problems]
    found = comparable([Group(row.name, row.runs) for row in rows], notes)
    for mode in MODES:
        one = found.get(("after", mode))
        if one is None or any(len(one.groups[row.name]) < len(row.runs) for row in rows):
            told = " ".join(notes) or f"{mode} evaluations are missing."
            raise UserError(f"{out}: the runs cannot be compared. {told} Choose another --out")
    results = [_result(row, rows, found) for row in rows]
    write_text(out / TABLE, _markdown(results, title, notes))
    write_json(out / VALUES, _values(results, notes))
    _draw(results, out / FIGURE, title)
    return out / TABLE


def _result(row: Row, rows: Sequence[Row], found: dict[Any, HeldOut]) -> Result:
    tunings = [other for other in rows if other.kind == "fine-tuning"]
    most = max(tunings, key=lambda other: other.size)
    own = [
        other
        for other in rows
        if (row.kind, other.kind) == ("practice", "start") and other.size == row.size
    ]
    success, to_own, to_most = {}, {}, {}
    for mode in MODES:
        one = found["after", mode]
        success[mode] = success_of(one.groups[row.name])
        for reference, home in ((own, to_own), ([most] if row is not most else [], to_most)):
            for other in reference:
                home[mode] = difference(one.groups[other.name], one.groups[row.name], one.states)
    steps = [_practised(run)[-1] if row.kind == "practice" else 0.0 for run in row.runs]
    return Result(row, float(np.mean(steps)), success, to_own, to_most)


def _practised(run: Run) -> Any:
    """Simulator steps until after each iteration."""
    steps = run.metrics.get("rollout/simulator_steps")
    if steps is None:
        raise UserError(f"{run.folder}: metrics.jsonl does not count simulator steps")
    return np.cumsum(np.nan_to_num(steps))


def _markdown(results: Sequence[Result], title: str, notes: Sequence[str]) -> str:
    most = max(r.row.size for r in results if r.row.kind == "fine-tuning")
    head = ["", "demonstrations a task", "simulator steps: demonstrations", "practice"]
    for mode in MODES:
        head += [mode, f"{mode}: gain by practice", f"{mode}: to fine-tuning on {most}"]
    lines = [head]
    for result in results:
        cells = [
            result.row.name,
            str(result.row.size),
            f"{result.row.demonstrated:,}",
            f"{result.practised:,.0f}" if result.practised else "",
        ]
        for mode in MODES:
            cells.append(success_text(result.success[mode]))
            cells += [difference_text(home.get(mode)) for home in (result.to_own, result.to_most)]
        lines.append(cells)
    return "\n".join([f"# {title}", "", table(lines), "", _explained(results), "", *notes]) + "\n"


def _explained(results: Sequence[Result]) -> str:
    seeds = len(results[0].row.runs)
    practice = [r for r in results if r.practised]
    worth = [r.practised / (r.row.demonstrated / r.row.size) for r in practice]
    text = (
        f"Success in % on held-out initial states, {seeds} seed{'s' if seeds > 1 else ''}. The first interval counts "
        "episodes (Wilson, 95 %); the one after `seeds` is Student's over the runs. Differences are paired over seeds "
        "and initial states, 95 %, and in brackets for each seed. The demonstrations are one set for all seeds: "
        "nothing here says what others would have given. Every fine-tuning sees the same number of demonstrations, few "
        "of them more often; those that practice starts from are shorter, so that there is something left to find out. "
        "Simulator steps of the demonstrations are those that are learned from; failures of the expert, which are "
        "replaced, are not counted."
    )
    if worth:
        text += (
            f" A practice has as many simulator steps as about {np.mean(worth):,.0f} demonstrations of each task: "
            f"nobody "
            "has to show them, but they have to be played."
        )
    if seeds == 1:
        text += " One seed alone: there is no interval over seeds."
    return text


def _values(results: Sequence[Result], notes: Sequence[str]) -> dict[str, Any]:
    def listed(found: dict[Mode, Difference]) -> dict[str, Any]:
        return {
            mode: {**one.paired._asdict(), "over_seeds": one.over_seeds, "each": one.each}
            for mode, one in found.items()
        }

    return {
        "format": 1,
        "rows": [
            {
                "kind": result.row.kind,
                "demonstrations": result.row.size,
                "demonstrated_steps": result.row.demonstrated,
                "practised_steps": result.practised,
                "success": {mode: one._asdict() for mode, one in result.success.items()},
                "gain_by_practice": listed(result.to_own),
                "to_most_demonstrations": listed(result.to_most),
                "runs": [str(run.folder) for run in result.row.runs],
            }
            for result in results
        ],
        "notes": list(notes),
    }


def _draw(results: Sequence[Result], path: Path, title: str) -> None:
    """Success against simulator steps, logarithmic: fine-tuning as points on a line, practice as curves."""
    need("matplotlib", purpose="a plot")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.4, 5), layout="constrained")
    axes.set_xscale("log")
    tunings = sorted((r for r in results if r.row.kind == "fine-tuning"), key=lambda r: r.row.size)
    practice = [r for r in results if r.row.kind == "practice"]
    starts = {r.row.size: r for r in results if r.row.kind == "start"}
    for mode, style in zip(MODES, ("-", ":"), strict=True):
        xs = [result.row.demonstrated for result in tunings]
        ys = [100 * result.success[mode].mean for result in tunings]
        axes.plot(xs, ys, color="0.3", linestyle=style, label=f"fine-tuning, {mode}")
        for result, x in zip(tunings, xs, strict=True):
            _point(axes, x, result.success[mode], "0.3", mode)
    for result in tunings:
        place = (result.row.demonstrated, 100 * result.success["greedy"].mean)
        axes.annotate(  # beside the bars, which stand above one another where two runs are drawn
            str(result.row.size), place, (-6, 3), textcoords="offset points", fontsize=8, ha="right"
        )
    window = window_for([curve_of(run) for result in practice for run in result.row.runs])
    for index, result in enumerate(practice):
        _draw_practice(axes, starts[result.row.size], result, window, f"C{index}")
    axes.set(
        ylim=(0, 103),
        xlabel="simulator steps: demonstrations and practice",
        ylabel="held-out success, %\nfilled: greedy, hollow: sampled; thin: success in training",
    )
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path, dpi=130)
    plt.close(figure)


def _draw_practice(axes: Any, before: Result, result: Result, window: int, color: str) -> None:
    """From the start of practice to its end, and success in training on the way."""
    start = result.row.demonstrated
    end = start + result.practised
    for run in result.row.runs:
        episodes = run.metrics.get("total/episodes")
        if episodes is None:
            continue
        spent, success = curve_of(run).smoothed(window, "episodes")
        known = np.isfinite(episodes)
        steps = np.interp(spent, episodes[known], _practised(run)[known])
        axes.plot(start + steps, 100 * success, color=color, alpha=0.4, linewidth=0.9)
    ys = [100 * before.success["greedy"].mean, 100 * result.success["greedy"].mean]
    axes.plot([start, end], ys, color=color, linewidth=1.6, label=result.row.name)
    for mode in MODES:
        _point(axes, start, before.success[mode], color, mode)
        _point(axes, end, result.success[mode], color, mode)


def _point(axes: Any, x: float, success: Success, color: str, mode: Mode) -> None:
    middle, (low, high) = 100 * success.mean, success.over_episodes
    error = np.clip([[middle - 100 * low], [100 * high - middle]], 0, None)
    axes.errorbar(
        x, middle, yerr=error, fmt="o", color=color, capsize=3, markersize=5, clip_on=False,
        markerfacecolor=color if mode == "greedy" else "white",
    )  # fmt: skip
