"""A comparison as Markdown tables, with its notes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from vla_rl.functional.intervals import Interval, PairedDifference
from vla_rl.report.comparison.curves import COSTS, Cost
from vla_rl.report.comparison.held_out import Difference, Success
from vla_rl.report.comparison.resources import resources_table
from vla_rl.report.comparison.study import Comparison, GroupSummary, RunSummary
from vla_rl.report.run_data import MODES, Mode, Stage

Row = Sequence[str]
_EXPLAINED = (
    "Success in %. The first interval counts episodes (Wilson, 95 %) and knows nothing of other seeds; the one after "
    "`seeds` is Student's over the runs, 95 %. Differences are paired over seeds and initial states, 95 %, and in "
    "brackets for each seed. `sampled` is at the temperature of practice."
)


def markdown(comparison: Comparison, title: str = "") -> str:
    """The whole comparison."""
    groups = comparison.groups
    several = len(groups) > 1
    parts = [f"# {title or 'Comparison of runs'}", "", _EXPLAINED, ""]
    if comparison.held_out:
        parts += ["## Held-out initial states", "", table(_held_out(groups, several)), ""]
    if comparison.ranges:
        parts += ["## Practice", "", table(_practice(comparison, several)), ""]
        parts += [_practice_explained(comparison, several), ""]
    parts += ["## Run by run", "", table(_runs(groups)), ""]
    tasks = list(dict.fromkeys(task for group in groups for task in group.tasks))
    if tasks:
        parts += ["## Task by task", "", "Greedy, before and after practice.", ""]
        parts += [table(_tasks(groups, tasks)), ""]
    resources = resources_table(groups)
    if len(resources) > 1:
        parts += ["## Speed and memory", "", table(resources), ""]
    if comparison.notes:
        parts += ["## Notes", "", *(f"- {_one_line(note)}" for note in comparison.notes), ""]
    return "\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """Rows of cells, the first one the heads."""
    # a bar would end the cell, and a tag would vanish
    head, *rest = [[c.replace("|", r"\|").replace("<", "&lt;") for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")


# -- tables


def _held_out(groups: Sequence[GroupSummary], several: bool) -> list[Row]:
    head = ["", "runs", "greedy before", "greedy after", "sampled before", "sampled after"]
    if several:
        first = groups[0].name
        head += [f"greedy, to {first}", f"sampled, to {first}"]
        head += ["mean rank over tasks"]
    rows: list[Row] = [head]
    for group in groups:
        cells = [group.name, _count(group)]
        places: list[tuple[Stage, Mode]] = [
            ("before", "greedy"), ("after", "greedy"), ("before", "sampled"), ("after", "sampled"),
        ]  # fmt: skip
        cells += [success_text(group.success.get(place)) for place in places]
        if several:
            cells += [difference_text(group.differences.get(mode)) for mode in MODES]
            cells += ["" if group.rank is None else f"{group.rank:.2f}"]
        rows.append(cells)
    return rows


def _count(group: GroupSummary) -> str:
    finished = sum(run.finished for run in group.runs)
    return f"{finished}" if finished == len(group.runs) else f"{finished} of {len(group.runs)}"


def success_text(success: Success | None) -> str:
    """`84.0 [80.1, 87.2], seeds [79.3, 88.7]`."""
    if success is None:
        return ""
    return (
        f"{100 * success.mean:.1f} {_interval(success.over_episodes)}{_seeds(success.over_seeds)}"
    )


def _seeds(interval: Interval | None, sign: str = "") -> str:
    """Student's interval, cut to what a rate or a difference of two can be."""
    if interval is None:
        return ""
    if interval.high == interval.low:  # by chance, which no interval would show
        return ", seeds all equal"
    least = -1.0 if sign else 0.0
    cut = Interval(max(least, interval.low), min(1.0, interval.high))
    return f", seeds {_interval(cut, sign)}"


def _interval(interval: Interval, sign: str = "") -> str:
    return f"[{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"


def paired_text(paired: PairedDifference) -> str:
    """`+3.2 [-1.0, +7.4]`."""
    return f"{100 * paired.mean:+.1f} {_interval(Interval(paired.low, paired.high), '+')}"


def difference_text(found: Difference | None) -> str:
    """`+3.2 [-1.0, +7.4] (+2, +5), seeds [...]`."""
    if found is None:
        return ""
    text = paired_text(found.paired)
    if not found.by_seed:
        return f"{text}, no seeds in common"
    text += f" ({', '.join(f'{100 * value:+.0f}' for value in found.each)})"
    return text + _seeds(found.over_seeds, "+")


def _practice(comparison: Comparison, several: bool) -> list[Row]:
    costs: list[Cost] = [cost for cost in COSTS if cost in comparison.ranges]
    head = ["", *(f"mean success by {cost}" for cost in costs)]
    if several:
        head += [f"{cost} needed" for cost in costs]
    rows: list[Row] = [head]
    for group in comparison.groups:
        cells = [group.name]
        for cost in costs:
            practice = group.practice.get(cost)
            if practice is None or not practice.area:
                cells.append("")
                continue
            cells.append(f"{100 * np.mean(practice.area):.1f}{_seeds(practice.over_seeds)}")
        if several:
            cells += [_needed(group, cost) for cost in costs]
        rows.append(cells)
    return rows


def _needed(group: GroupSummary, cost: Cost) -> str:
    practice = group.practice.get(cost)
    if practice is None or not practice.needed:
        return ""
    each = ", ".join(map(_spent, practice.needed))
    return f"{_spent(float(np.median(practice.needed)))} ({each})"


def _spent(value: float) -> str:
    return f"{value:,.3g}" if math.isfinite(value) and value < 100 else _large(value)


def _large(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "never"


def _practice_explained(comparison: Comparison, several: bool) -> str:
    parts = [
        f"Sampled success in training, mean over tasks, running mean of {comparison.window} iterations. Mean success "
        f"is "
        "the area under that curve over its width,"
    ]
    widths = [
        f"from {_spent(low)} to {_spent(high)} {cost}"
        for cost, (low, high) in comparison.ranges.items()
    ]
    parts.append(f"{' and '.join(widths)}, which all finished runs have in common.")
    if several:
        parts.append(
            "Needed is what a run had spent when it first reached where the run of the first group with its seed ended "
            "(median, and each run; never: not within the run)."
        )
    return " ".join(parts)


def _runs(groups: Sequence[GroupSummary]) -> list[Row]:
    head = ["run", "group", "seed", "iterations", "episodes", "minutes"]
    for mode in MODES:
        head += [f"{mode} before", f"{mode} after", f"{mode} gain"]
    return [[*head, "remarks"], *(_run(run) for group in groups for run in group.runs)]


def _run(summary: RunSummary) -> Row:
    cells = [
        summary.title,
        summary.group,
        "" if summary.seed is None else str(summary.seed),
        str(summary.curve.iterations),
        "" if summary.episodes is None else f"{summary.episodes:,.0f}",
        "" if summary.minutes is None else f"{summary.minutes:.1f}",
    ]
    for mode in MODES:
        for stage in ("before", "after"):
            evaluation = summary.run.evaluations.get((stage, mode))
            rate = None if evaluation is None else evaluation.overall
            known = rate is not None and rate.episodes > 0
            cells.append(f"{100 * rate.rate:.1f} % of {rate.episodes}" if rate and known else "")
        gain = summary.gains.get(mode)
        cells.append("" if gain is None else paired_text(gain))
    return [*cells, ", ".join(_remarks(summary))]


def _remarks(summary: RunSummary) -> Iterator[str]:
    if summary.diverged:
        yield "diverged"
    if not summary.finished:
        yield "not finished"
    if summary.run.metrics.not_finite:
        yield "numbers that are not finite"


def _tasks(groups: Sequence[GroupSummary], tasks: Sequence[str]) -> list[Row]:
    rows: list[Row] = [["", *(group.name for group in groups)]]
    for task in tasks:
        cells = [task]
        for group in groups:
            found = group.tasks.get(task, {})
            ends = [f"{100 * found[s]:.0f}" if s in found else "?" for s in ("before", "after")]
            cells.append(" to ".join(ends) if found else "")
        rows.append(cells)
    return rows
