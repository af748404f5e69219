"""Results as text for a terminal."""

from __future__ import annotations

from typing import Any


def success_table(result: dict[str, Any]) -> str:
    """Success per task, per suite of a union, and overall, of `evaluate_checkpoint`'s result."""
    suites = result.get("suites", {})
    rows = [*result["tasks"].items(), *suites.items(), ("all", result["overall"])]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {_rate(row)}{_clock(row)}" for name, row in rows]
    if suites:
        mean = result["mean_of_suites"]
        low, high = mean["interval"]
        lines.append(
            f"{'mean of suites':<{width}}  {'':9} {mean['success_rate']:6.1%}  [{low:.1%}, {high:.1%}]"
        )
    return "\n".join([*lines, *_practised(result.get("practice"), width)])


def _practised(practice: dict[str, Any] | None, width: int) -> list[str]:
    """The episodes from initial states of practice apart from the others, where there are both or only the former."""
    if practice is None:
        return []
    if not practice["known"]:
        return ["Nothing says which of these initial states the policy was trained on."]
    if practice["practised"] is None:
        return []
    named = (("practised", practice["practised"]), ("held out", practice["held_out"]))
    lines = [f"{name:<{width}}  {_rate(row)}" for name, row in named if row is not None]
    return ["of these, by whether the initial state was practised on:", *lines]


def _clock(row: dict[str, Any]) -> str:
    """By what a suite's episodes were cut, where suites differ."""
    return f"  up to {row['horizon']} turns" if "horizon" in row else ""


def _rate(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['successes']:>4}/{row['episodes']:<4} {row['success_rate']:6.1%}  [{low:.1%}, {high:.1%}]"


def starts_table(result: dict[str, Any]) -> str:
    """Success against the share of a demonstration's way, of `success_by_start`'s result."""
    width = max(len(task) for task in result["starts"])
    lines = [
        f"{task:<{width}}  from {row['fraction']:4.0%}  {_rate(row)}"
        for task, rows in result["starts"].items()
        for row in rows
    ]
    note = "Above 0 % an episode is put where a demonstration was: success from there is not the policy's own."
    return "\n".join([*lines, note])


def reward_model_table(result: dict[str, Any]) -> str:
    """What `evaluate_reward` returned, for readers."""
    lines = []
    for title, measured in (
        ("seen tasks", result["seen_tasks"]),
        ("held-out tasks", result["held_out_tasks"]),
    ):
        if measured is None:
            continue
        low, high = measured["auroc_interval"] or (None, None)
        ranking, progress = measured["ranking"]["last"], measured["progress_correlation"]
        lines += [
            f"{title}: {measured['turns']} turns, {measured['positives']} of them positive, of "
            f"{measured['episodes']} episodes, {measured['successes']} of them successes",
            f"  AUROC                           {_shown(measured['auroc'])}  [{_shown(low)}, {_shown(high)}]",
            f"  average precision               {_shown(measured['average_precision'])}  "
            f"chance {_shown(measured['chance'])}",
            f"  calibration error               {_shown(measured.get('calibration_error'))}",
            f"  success above failure, at end   {_shown(ranking['accuracy'])}  {ranking['pairs']} pairs",
            f"  correlation with time           {_shown(progress['mean'])}  {progress['episodes']} successes",
            f"  progress: mean absolute error   {_shown(measured['progress']['mean_absolute_error'])}",
            f"  progress: rank correlation      {_shown(measured['progress']['rank_correlation'])}",
        ]
        width = max(len(task) for task in measured["tasks"])
        lines += [
            f"  AUROC of {task:<{width}}  {_shown(own['auroc'])}  {own['positives']}/{own['turns']} positive"
            for task, own in measured["tasks"].items()
        ]
    if result["mismatched"] is not None:
        lines.append(f"mismatched instructions: AUROC {_shown(result['mismatched']['auroc'])}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
