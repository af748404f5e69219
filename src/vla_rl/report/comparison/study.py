"""Everything that a comparison says, as values: the tables, the JSON file and the figures are made from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vla_rl.config.errors import UserError, printable
from vla_rl.functional.intervals import Interval, PairedDifference, mean_interval
from vla_rl.functional.ranking import average_ranks
from vla_rl.report.comparison.curves import (
    COSTS,
    Cost,
    Curve,
    area,
    common_range,
    curve_of,
    window_for,
)
from vla_rl.report.comparison.held_out import (
    Difference,
    HeldOut,
    Success,
    comparable,
    difference,
    gain,
    success_of,
)
from vla_rl.report.comparison.selection import Group, Selection, seed_of, title_of
from vla_rl.report.run_data import MODES, Mode, Run, Stage

DIVERGED = "diverged.txt"
"""In the folder of a run that was stopped by a number that is not finite: where, and why."""
_COLUMNS_NAMED = 4


@dataclass(frozen=True)
class RunSummary:
    """One run."""

    run: Run
    title: str
    group: str
    seed: int | None
    curve: Curve
    finished: bool
    """Evaluated after practice."""
    diverged: bool
    gains: Mapping[Mode, PairedDifference]
    episodes: float | None
    minutes: float | None


@dataclass(frozen=True)
class Practice:
    """What a group's practice costs and brings, counted in one currency."""

    area: tuple[float, ...]
    """Of each run: mean success over the range that all runs have in common."""
    over_seeds: Interval | None
    needed: tuple[float, ...]
    """Of each run: what it spent to reach the end of the first group's run of the same seed; infinity: never."""


@dataclass(frozen=True)
class GroupSummary:
    """Runs that belong together."""

    name: str
    runs: tuple[RunSummary, ...]
    success: Mapping[tuple[Stage, Mode], Success]
    differences: Mapping[Mode, Difference]
    """To the first group, after practice."""
    tasks: Mapping[str, Mapping[Stage, float]]
    """Greedy success on held-out states of each task."""
    rank: float | None
    """Mean over tasks of the group's place by greedy success after practice; 1 is the best."""
    practice: Mapping[Cost, Practice]


@dataclass(frozen=True)
class Comparison:
    """All groups, and what has to be said about them."""

    groups: tuple[GroupSummary, ...]
    held_out: Mapping[tuple[Stage, Mode], HeldOut]
    window: int
    ranges: Mapping[Cost, tuple[float, float]]
    """What all finished runs have spent at least."""
    notes: tuple[str, ...]


def compare(selection: Selection) -> Comparison:
    """Compare the groups of `selection`; the first one is what differences are to.

    Raises UserError where runs practise different tasks.
    """
    groups, notes = selection.groups, [*selection.notes]
    _require_same_tasks(groups)
    held_out = comparable(groups, notes)
    curves = {id(run): curve_of(run) for group in groups for run in group.runs}
    finished = [curves[id(run)] for group in groups for run in group.runs if _finished(run)]
    compared = finished or [*curves.values()]
    window = window_for(compared)
    ranges: dict[Cost, tuple[float, float]] = {
        cost: r for cost in COSTS if (r := common_range(compared, window, cost)) is not None
    }
    runs = {g.name: tuple(_summary(g, r, curves[id(r)], held_out) for r in g.runs) for g in groups}
    for summary in (summary for own in runs.values() for summary in own):
        notes += _remarks(summary)
    if not finished:
        notes.append("No run has been evaluated after practice: only curves are compared.")
    notes += _about_seeds(runs)
    ranks = _ranks(held_out.get(("after", "greedy")))
    summaries = tuple(
        GroupSummary(
            name=group.name,
            runs=runs[group.name],
            success={
                place: success
                for place, found in held_out.items()
                if (success := success_of(found.groups[group.name])) is not None
            },
            differences=_differences(held_out, groups[0].name, group.name),
            tasks=_by_task(held_out, group.name),
            rank=ranks.get(group.name),
            practice=_practice(runs[groups[0].name], runs[group.name], window, ranges),
        )
        for group in groups
    )
    return Comparison(summaries, held_out, window, ranges, tuple(dict.fromkeys(notes)))


# -- what cannot be compared, and what has to be said


def _require_same_tasks(groups: Sequence[Group]) -> None:
    suites: dict[str, list[Run]] = {}
    for group in groups:
        for run in group.runs:
            suites.setdefault(printable(str(run.setting("env.suite") or "unknown")), []).append(run)
    if len(suites) < 2 or len({frozenset(r.tasks) for runs in suites.values() for r in runs}) == 1:
        return
    listed = "; ".join(
        f"{suite}: {', '.join(title_of(run) for run in runs[:3])}{', ...' if len(runs) > 3 else ''}"
        for suite, runs in suites.items()
    )
    raise UserError(
        f"expected runs that practise the same tasks, got {len(suites)} suites ({listed}): compare the runs of each "
        "suite on their own"
    )


def _finished(run: Run) -> bool:
    return any(("after", mode) in run.evaluations for mode in MODES)


def _remarks(summary: RunSummary) -> list[str]:
    """What is wrong with a run, in sentences."""
    run, title = summary.run, summary.title
    found = [f"{title}: {problem}" for problem in run.problems]
    if summary.diverged:
        found.append(
            f"{title} diverged; where it was evaluated, that is what it had last saved, and it counts with the others."
        )
    named = list(run.metrics.not_finite)[:_COLUMNS_NAMED]
    if named:
        more = ", ..." if len(run.metrics.not_finite) > len(named) else ""
        found.append(
            f"{title}: metrics.jsonl holds numbers that are not finite ({', '.join(map(printable, named))}{more}); its "
            "curve leaves those iterations out."
        )
    shares = [*run.metrics.under("success/").items()]
    wrong = [name for name, values in shares if ((values < 0) | (values > 1)).any()]
    if wrong:
        found.append(
            f"{title}: success of {', '.join(map(printable, wrong[:_COLUMNS_NAMED]))} is outside of 0..1 in "
            "metrics.jsonl; those values are left out."
        )
    if not summary.finished:
        found.append(
            f"{title} is not finished: it has no evaluation after practice, and counts in no mean. "
            f"`vla-rl train --resume {printable(str(run.folder))}` goes on with it."
        )
    if not len(summary.curve):
        found.append(f"{title} has no curve: metrics.jsonl says nothing of success in training.")
    return found


def _about_seeds(runs: Mapping[str, Sequence[RunSummary]]) -> list[str]:
    single = [name for name, own in runs.items() if len([r for r in own if r.finished]) == 1]
    if not single:
        return []
    return [
        f"One finished run alone: {', '.join(single)}. There is no interval over seeds, and the one over episodes says "
        "nothing of what another seed would give."
    ]


# -- numbers


def _summary(
    group: Group,
    run: Run,
    curve: Curve,
    held_out: Mapping[tuple[Stage, Mode], HeldOut],
) -> RunSummary:
    gains: dict[Mode, PairedDifference] = {
        mode: found
        for mode in MODES
        if (found := gain(held_out.get(("before", mode)), held_out.get(("after", mode)), run))
    }
    return RunSummary(
        run=run,
        title=title_of(run),
        group=group.name,
        seed=seed_of(run),
        curve=curve,
        finished=_finished(run),
        diverged=(run.folder / DIVERGED).is_file(),
        gains=gains,
        episodes=_most(run, "total/episodes", 1),
        minutes=_most(run, "total/train_seconds", 60),
    )


def _most(run: Run, key: str, unit: float) -> float | None:
    values = run.metrics.get(key)
    return None if values is None else float(np.nanmax(values)) / unit


def _differences(
    held_out: Mapping[tuple[Stage, Mode], HeldOut], first: str, name: str
) -> dict[Mode, Difference]:
    if name == first:
        return {}
    return {
        mode: found
        for mode in MODES
        if (one := held_out.get(("after", mode))) is not None
        and (found := difference(one.groups[first], one.groups[name], one.states)) is not None
    }


def _by_task(
    held_out: Mapping[tuple[Stage, Mode], HeldOut], name: str
) -> dict[str, dict[Stage, float]]:
    found: dict[str, dict[Stage, float]] = {}
    for (stage, mode), one in held_out.items():
        if mode != "greedy" or not one.groups[name]:
            continue
        for task in dict.fromkeys(task for task, _ in one.states):
            outcomes = [
                outcome.success[state]
                for outcome in one.groups[name]
                for state in one.states
                if state[0] == task
            ]
            found.setdefault(task, {})[stage] = float(np.mean(outcomes))
    return found


def _ranks(after: HeldOut | None) -> dict[str, float]:
    """Mean over tasks of each group's place, groups that are equal sharing theirs."""
    if after is None:
        return {}
    names = [name for name, outcomes in after.groups.items() if outcomes]
    if len(names) < 2:
        return {}
    places = []
    for task in dict.fromkeys(task for task, _ in after.states):
        states = [state for state in after.states if state[0] == task]
        means = [
            float(np.mean([outcome.success[s] for outcome in after.groups[name] for s in states]))
            for name in names
        ]
        places.append(average_ranks(-np.array(means)))
    return dict(zip(names, np.mean(places, axis=0).tolist(), strict=True))


def _practice(
    first: Sequence[RunSummary],
    own: Sequence[RunSummary],
    window: int,
    ranges: Mapping[Cost, tuple[float, float]],
) -> dict[Cost, Practice]:
    found: dict[Cost, Practice] = {}
    counted = [summary for summary in own if summary.finished] or own
    for cost, shared in ranges.items():
        areas = [a for s in counted if (a := area(s.curve, window, cost, shared)) is not None]
        needed = [
            s.curve.needed(target, window, cost)
            for s in counted
            if math.isfinite(target := _target(first, s, window))
        ]
        found[cost] = Practice(tuple(areas), mean_interval(areas), tuple(needed))
    return found


def _target(first: Sequence[RunSummary], summary: RunSummary, window: int) -> float:
    """The running mean at the end of the first group's run of the same seed, or the mean over its runs."""
    ends = {id(s): s.curve.last(window) for s in first if s.finished}
    ends = {key: end for key, end in ends.items() if math.isfinite(end)}
    same = [s for s in first if id(s) in ends and s.seed is not None and s.seed == summary.seed]
    if len(same) == 1:
        return ends[id(same[0])]
    return float(np.mean([*ends.values()])) if ends else math.nan
