"""`vla-rl compare`: runs against runs, as a table, a JSON file and pictures in one folder.

    vla-rl compare runs/a-seed-* runs/b-seed-* --out runs/comparison
    vla-rl compare ppo=runs/a-* grpo=runs/b-*

Reads only what `vla-rl train` left in the folders; nothing in it may depend on how a run was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_rl.report.comparison.figure import draw_comparison, draw_tasks
from vla_rl.report.comparison.selection import select_runs
from vla_rl.report.comparison.study import Comparison, GroupSummary, RunSummary, compare
from vla_rl.report.comparison.table import markdown
from vla_rl.runtime.files import require_writable, write_json, write_text

FORMAT = 1
TABLE, VALUES = "comparison.md", "comparison.json"
FIGURE, TASKS = "comparison.png", "comparison-tasks.png"


def compare_runs(runs: Sequence[str], out: Path, title: str = "") -> Path:
    """Compare what `runs` name (see `select_runs`) and return the path of the table, `out`/comparison.md.

    Beside it lie comparison.json with all values, comparison.png, and comparison-tasks.png with a panel for each task.
    What could not be compared stands in the table's notes. Raises UserError where a word leads to no run, where runs
    practise different tasks, and where `out` cannot be written.
    """
    require_writable(out, "folder")
    comparison = compare(select_runs(runs))
    out.mkdir(parents=True, exist_ok=True)
    table = out / TABLE
    write_text(table, markdown(comparison, title))
    write_json(out / VALUES, values(comparison))
    draw_comparison(comparison, out / FIGURE, title)
    if not draw_tasks(comparison, out / TASKS, title):
        (out / TASKS).unlink(missing_ok=True)  # of an earlier comparison
    return table


def values(comparison: Comparison) -> dict[str, Any]:
    """Everything as JSON values: rates in 0..1, what is not known or never happens as null."""
    return {
        "format": FORMAT,
        "window": comparison.window,
        "ranges": {cost: list(ends) for cost, ends in comparison.ranges.items()},
        "episodes": {
            f"{stage}-{mode}": len(one.states) for (stage, mode), one in comparison.held_out.items()
        },
        "groups": [_group(group) for group in comparison.groups],
        "notes": list(comparison.notes),
    }


def _group(group: GroupSummary) -> dict[str, Any]:
    return {
        "name": group.name,
        "runs": [_run(run) for run in group.runs],
        "success": {
            f"{stage}-{mode}": {
                "mean": success.mean,
                "episodes": success.episodes,
                "over_episodes": list(success.over_episodes),
                "over_seeds": _listed(success.over_seeds),
                "each": list(success.each),
            }
            for (stage, mode), success in group.success.items()
        },
        "difference_to_first": {
            mode: {
                **found.paired._asdict(),
                "paired_by_seed": found.by_seed,
                "over_seeds": _listed(found.over_seeds),
                "each": list(found.each),
            }
            for mode, found in group.differences.items()
        },
        "mean_rank": group.rank,
        "tasks": {task: dict(found) for task, found in group.tasks.items()},
        "practice": {
            cost: {
                "mean_success": list(practice.area),
                "over_seeds": _listed(practice.over_seeds),
                "needed": [_finite(value) for value in practice.needed],
            }
            for cost, practice in group.practice.items()
        },
    }


def _run(summary: RunSummary) -> dict[str, Any]:
    evaluations = summary.run.evaluations
    return {
        "folder": str(summary.run.folder),
        "seed": summary.seed,
        "finished": summary.finished,
        "diverged": summary.diverged,
        "iterations": summary.curve.iterations,
        "episodes": summary.episodes,
        "minutes": summary.minutes,
        "evaluations": {
            f"{stage}-{mode}": {"successes": e.overall.successes, "episodes": e.overall.episodes}
            for (stage, mode), e in evaluations.items()
        },
        "gains": {mode: gain._asdict() for mode, gain in summary.gains.items()},
        "curve": _curve(summary),
    }


def _curve(summary: RunSummary) -> Mapping[str, list[float | None]]:
    curve = summary.curve
    columns = {"episodes": curve.episodes, "minutes": curve.minutes, "success": curve.success}
    return {name: [_finite(value) for value in column] for name, column in columns.items()}


def _listed(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
