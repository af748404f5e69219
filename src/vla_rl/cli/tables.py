"""Results as text for a terminal."""

from __future__ import annotations

from typing import Any


def success_table(result: dict[str, Any]) -> str:
    """Success per task and overall, of `evaluate_checkpoint`'s result."""
    rows = [*result["tasks"].items(), ("all", result["overall"])]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {row['successes']:>4}/{row['episodes']:<4} {row['success_rate']:6.1%}"
        f"  [{row['interval'][0]:.1%}, {row['interval'][1]:.1%}]"
        for name, row in rows
    )


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
            f"{title}: {measured['decisions']} decisions, {measured['positives']} of them positive, of "
            f"{measured['episodes']} episodes, {measured['successes']} of them successes",
            f"  AUROC                           {_shown(measured['auroc'])}  [{_shown(low)}, {_shown(high)}]",
            f"  average precision               {_shown(measured['average_precision'])}  "
            f"chance {_shown(measured['chance'])}",
            f"  calibration error               {_shown(measured.get('calibration_error'))}",
            f"  success above failure, at end   {_shown(ranking['accuracy'])}  {ranking['pairs']} pairs",
            f"  correlation with time           {_shown(progress['mean'])}  {progress['episodes']} successes",
        ]
        width = max(len(task) for task in measured["tasks"])
        lines += [
            f"  AUROC of {task:<{width}}  {_shown(own['auroc'])}  {own['positives']}/{own['decisions']} positive"
            for task, own in measured["tasks"].items()
        ]
    if result["mismatched"] is not None:
        lines.append(f"mismatched instructions: AUROC {_shown(result['mismatched']['auroc'])}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
