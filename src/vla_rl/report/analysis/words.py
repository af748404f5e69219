"""An analysis in words and tables: analysis.md."""

from __future__ import annotations

from collections.abc import Iterator

from vla_rl.evaluation.failures import MEANING
from vla_rl.report.analysis.record import (
    Agreement,
    Analysis,
    Coverage,
    Estimate,
    Failures,
    KindCount,
    Lengths,
    PlateauRow,
    Spread,
    StageFailures,
)

STATES = {
    "own": "on its own way, from the same initial states",
    "same": "in the same states, those that both came to",
}


def markdown(analysis: Analysis) -> str:
    """The whole page."""
    lines = [
        "# What practice changed",
        "",
        f"Suite {analysis.suite}, {analysis.initial_states} initial states of the {analysis.split} split for each "
        f"task. After practice: `{analysis.after}`. "
        + (f"Before: `{analysis.before}`." if analysis.before else "Nothing to compare with."),
    ]
    lines += [f"- {note}" for note in analysis.notes]
    if analysis.failures is not None:
        lines += _failures(analysis.failures)
    if analysis.agreement is not None:
        lines += _agreement(analysis.agreement)
    if analysis.coverage is not None:
        lines += _coverage(analysis.coverage)
    if analysis.lengths is not None:
        lines += _lengths(analysis.lengths)
    return "\n".join([*lines, ""])


def failure_rows(failures: Failures) -> Iterator[tuple[str, list[KindCount | None]]]:
    """(kind, one count for each policy) of every kind that occurred."""
    found = [{kind.kind: kind for kind in stage.kinds} for stage in failures.stages]
    for kind in MEANING:
        if any(kind in counts for counts in found):
            yield kind, [counts.get(kind) for counts in found]


def count_in_words(count: KindCount | None, stage: StageFailures) -> str:
    """`12 (8.0 %, 4.6 to 13.5)`: of all episodes, with Wilson's interval."""
    if count is None:
        return f"0 of {stage.episodes}"
    share = count.share
    return f"{count.failures} ({_percent(share.value)} %, {_percent(share.low)} to {_percent(share.high)})"


def in_words(estimate: Estimate | None, digits: int = 2) -> str:
    """`1.23 (1.10 to 1.36)`."""
    if estimate is None:
        return "-"
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def volume_in_words(spread: Spread | None) -> str:
    """The volume in percent with its interval, small ones in three digits."""
    if spread is None:
        return "-"
    volume = spread.volume
    return f"{100 * volume.value:.3g} % ({100 * volume.low:.3g} to {100 * volume.high:.3g})"


def plateau_in_words(plateau: PlateauRow) -> str:
    """One plateau and the curriculum beside it."""
    digits = 3 if plateau.measure == "success rate" else 2
    beside = (
        f"the curriculum turned in iteration {_listed(plateau.changes_within)} of it"
        if plateau.changes_within
        else "the curriculum did not turn meanwhile"
    )
    after = f"; it turned next in iteration {plateau.next_change}" if plateau.next_change else ""
    return (
        f"{plateau.measure}, iterations {plateau.first} to {plateau.last}: {plateau.mean:.{digits}f} on average, "
        f"change {in_words(plateau.change, digits)}; {beside}{after}"
    )


def _failures(failures: Failures) -> list[str]:
    stages = failures.stages
    lines = [
        "",
        "## How episodes fail",
        "",
        "Greedy play, each initial state once. Shares are of all episodes.",
    ]
    if not any(stage.failed for stage in stages):
        return [*lines, "", f"No episode failed, of {sum(stage.episodes for stage in stages)}."]
    lines += ["", "| kind | " + " | ".join(stage.stage for stage in stages) + " | meaning |"]
    lines += ["|---" * (len(stages) + 2) + "|"]
    for kind, counts in failure_rows(failures):
        cells = [count_in_words(c, s) for c, s in zip(counts, stages, strict=True)]
        lines.append(f"| {kind} | {' | '.join(cells)} | {MEANING[kind]} |")
    totals = [f"{stage.failed} of {stage.episodes}" for stage in stages]
    lines += [
        f"| all failures | {' | '.join(totals)} | |",
        "",
        "![Kinds of failures](failures.png)",
    ]
    if failures.not_told:
        lines += [
            "",
            f"Cannot be told, or cannot occur in these tasks: {', '.join(failures.not_told)}.",
        ]
    if failures.videos:
        lines += ["", "One episode of each kind:", ""]
        lines += [
            f"- {v.kind}, {v.stage}: [{v.task}, initial state {v.initial_state}](videos/{v.file})"
            for v in failures.videos
        ]
    lines += ["", "| task | " + " | ".join(f"{s.stage}: kinds" for s in stages) + " |"]
    lines += ["|---" * (len(stages) + 1) + "|"]
    for task in dict.fromkeys(task for stage in stages for task in stage.tasks):
        cells = [
            ", ".join(f"{kind} {count}" for kind, count in s.tasks.get(task, {}).items()) or "none"
            for s in stages
        ]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return lines


def _agreement(agreement: Agreement) -> list[str]:
    lines = ["", "## Agreement with labels given by eye", ""]
    kappa = (
        f"Cohen's kappa {in_words(agreement.kappa)}"
        if agreement.kappa is not None
        else "Cohen's kappa is not defined: one label is all there is"
    )
    lines.append(
        f"{agreement.episodes} episodes, {_percent(agreement.agreed)} % labelled alike "
        f"({_percent(agreement.by_chance)} % by chance). {kappa}."
    )
    kinds = list(dict.fromkeys(kind for row in agreement.confusion.values() for kind in row))
    kinds = [kind for kind in MEANING if kind in kinds]
    lines += ["", f"| by eye \\ table | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for label, row in agreement.confusion.items():
        lines.append(f"| {label} | {' | '.join(str(row.get(kind, 0)) for kind in kinds)} |")
    return lines


def _coverage(coverage: Coverage) -> list[str]:
    lines = [
        "",
        "## Action coverage",
        "",
        f"Actions sampled at temperature {coverage.temperature:g}, {coverage.episodes} episodes of each policy. "
        f"Entropy: Kozachenko and Leonenko's estimate from the {coverage.neighbours} nearest neighbours, in nats. "
        "Volume: that of a box filled evenly with the same entropy, as a share of all actions. Intervals: "
        "bootstrap over episodes, 95 %.",
        "",
        "| states | actions | entropy before | after | difference | volume before | after |",
        "|---|---|---|---|---|---|---|",
    ]
    for view in coverage.views:
        before = in_words(view.before.entropy) if view.before else "-"
        lines.append(
            f"| {STATES[view.states]} | {view.after.samples} | {before} | {in_words(view.after.entropy)} | "
            f"{in_words(view.difference)} | {volume_in_words(view.before)} | {volume_in_words(view.after)} |"
        )
    return [*lines, "", "![Density of each pair of action dimensions](coverage.png)"]


def _lengths(lengths: Lengths) -> list[str]:
    lines = [
        "",
        "## Episode length over training",
        "",
        f"{lengths.first:.2f} turns on average in the first tenth of {lengths.iterations} iterations, "
        f"{lengths.last:.2f} in the last tenth. A plateau is a stretch of {lengths.window} iterations or more over "
        f"which the success rate changed by no more than {lengths.tolerance:g}, or the length by no more than that "
        "share of the horizon, with its whole 95 % interval.",
        "",
    ]
    lines += [f"- {plateau_in_words(plateau)}" for plateau in lengths.plateaus] or ["No plateaus."]
    lines += ["", "![Episode length and success over training](lengths.png)"]
    if lengths.changes:
        lines += ["", f"The curriculum turned {len(lengths.changes)} times: "]
        lines[-1] += "; ".join(f"{c.iteration} ({c.what})" for c in lengths.changes) + "."
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
