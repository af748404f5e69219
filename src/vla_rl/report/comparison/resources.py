"""What runs of a comparison cost the machine: speed, where the time went, and memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_rl.report.comparison.study import GroupSummary, RunSummary
from vla_rl.report.run_data import Run

PARTS = ("simulate", "infer", "learn", "other")
_SETTLED = 9
"""The iteration, counted from 0, from which on memory should not grow any more."""


def resources_table(groups: Sequence[GroupSummary]) -> list[Sequence[str]]:
    """Means over a run's iterations; memory as the 10th iteration's and the change from there to the last."""
    rows: list[Sequence[str]] = [
        [
            "run", "turns/s playing", "episodes/s playing", "episodes/s with learning",
            f"s per iteration: {', '.join(PARTS)}", "main process, MB", "simulators, MB",
        ]
    ]  # fmt: skip
    for summary in (summary for group in groups for summary in group.runs):
        cells = [
            _mean(summary.run, "speed/rollout_turns_per_second", 0),
            _mean(summary.run, "speed/rollout_episodes_per_second", 1),
            _overall(summary),
            ", ".join(_mean(summary.run, f"time/{part}", 2) or "?" for part in PARTS),
            _growth(summary.run, "memory/main_mb"),
            _growth(summary.run, "memory/workers_mb"),
        ]
        if any(cell for cell in (*cells[:3], *cells[4:])):
            rows.append([summary.title, *cells])
    return rows


def _overall(summary: RunSummary) -> str:
    if summary.episodes is None or not summary.minutes:
        return ""
    return f"{summary.episodes / summary.minutes / 60:.1f}"


def _mean(run: Run, key: str, digits: int) -> str:
    values = run.metrics.get(key)
    return "" if values is None else f"{np.nanmean(values):.{digits}f}"


def _growth(run: Run, key: str) -> str:
    values = run.metrics.get(key)
    known = np.zeros(0) if values is None else values[np.isfinite(values)]
    if not len(known):
        return ""
    start, end = known[min(_SETTLED, len(known) - 1)], known[-1]
    return f"{start:.0f} {100 * (end / start - 1):+.1f} %" if start > 0 else f"{end:.0f}"
