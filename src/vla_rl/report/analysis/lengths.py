"""Episode length and success over training: where they stand still, beside what the curriculum does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from vla_rl.functional.plateaus import plateaus
from vla_rl.report.analysis.record import CurriculumChange, Estimate, Lengths, PlateauRow
from vla_rl.report.run_data import Run
from vla_rl.report.tables import Table

LENGTH, SUCCESS, LEVEL = "rollout/episode_length", "rollout/success_rate", "curriculum/level"
WEIGHTS = "curriculum/p/"
TURNED = 0.1
"""Share of all draws that went to other tasks since the last change: from here on it is one (total variation)."""


def lengths_of(run: Run, window: int, tolerance: float) -> Lengths | None:
    """What the metrics of a run say; None where they hold no episode length."""
    table = run.metrics
    length = table.get(LENGTH)
    if length is None:
        return None
    horizon = run.setting("env.horizon")
    horizon = horizon if isinstance(horizon, int) and horizon > 0 else None
    known = length[np.isfinite(length)]
    tenth = max(1, len(known) // 10)
    changes = curriculum_changes(table)
    rows = _plateaus(table, SUCCESS, window, tolerance, changes)
    rows += _plateaus(table, LENGTH, window, tolerance * (horizon or float(known.max())), changes)
    return Lengths(
        iterations=len(table),
        horizon=horizon,
        first=float(known[:tenth].mean()),
        last=float(known[-tenth:].mean()),
        window=window,
        tolerance=tolerance,
        plateaus=tuple(rows),
        changes=changes,
    )


def curriculum_changes(table: Table) -> tuple[CurriculumChange, ...]:
    """Where a new level opened, or, without levels, where a tenth of the draws had gone over to other tasks."""
    level = table.get(LEVEL)
    if level is not None:
        steps = zip(table.index[1:].tolist(), level[:-1], level[1:], strict=True)
        return tuple(
            CurriculumChange(iteration, f"level {int(new)} opened")
            for iteration, old, new in steps
            if np.isfinite(old) and np.isfinite(new) and new > old
        )
    weights = table.under(WEIGHTS)
    return _turns(table, weights) if weights else ()


def _turns(
    table: Table, weights: Mapping[str, Float64[np.ndarray, " R"]]
) -> tuple[CurriculumChange, ...]:
    names = list(weights)
    rows = np.nan_to_num(np.stack([weights[name] for name in names], axis=1))
    reference, found = rows[0], []
    for iteration, row in zip(table.index.tolist(), rows, strict=True):
        if 0.5 * np.abs(row - reference).sum() >= TURNED:
            more, less = np.argmax(row - reference), np.argmin(row - reference)
            found.append(
                CurriculumChange(int(iteration), f"more {names[more]}, less {names[less]}")
            )
            reference = row
    return tuple(found)


def _plateaus(
    table: Table,
    key: str,
    window: int,
    tolerance: float,
    changes: tuple[CurriculumChange, ...],
) -> list[PlateauRow]:
    column = table.get(key)
    if column is None:
        return []
    known = np.flatnonzero(np.isfinite(column))
    rows = []
    for plateau in plateaus(column[known], window, tolerance):
        first, last = (int(table.index[known[place]]) for place in (plateau.start, plateau.end))
        within = tuple(c.iteration for c in changes if first <= c.iteration <= last)
        later = [c.iteration for c in changes if c.iteration > last]
        rows.append(
            PlateauRow(
                "success rate" if key == SUCCESS else "episode length",
                first,
                last,
                plateau.mean,
                Estimate(plateau.change, plateau.low, plateau.high),
                within,
                later[0] if later else None,
            )
        )
    return rows
