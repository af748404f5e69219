"""Before/after table and learning curves of several training runs, one per seed.

    python benchmarks/summarise_runs.py runs/seed-0/ppo runs/seed-1/ppo runs/seed-2/ppo --png curves.png

Prints a markdown table: each run's held-out success before and after (Wilson 95 % intervals), the gain over the same
initial states (paired, 95 %), and the mean over runs. Reads only what `vla-rl train` left in the run folders.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from vla_rl.functional import paired_difference

MODES = ("greedy", "sampled")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--png", type=Path, help="write the learning curves here")
    parser.add_argument("--tasks-png", type=Path, help="write a panel for each task here")
    parser.add_argument("--label", default="", help="title of the figure")
    arguments = parser.parse_args()
    for mode in MODES:
        print(f"\n{mode}\n")
        print(table(arguments.runs, mode))
    print("\nspeed and memory\n")
    print(resources_table(arguments.runs))
    print("\nper task, greedy\n")
    print(task_table(arguments.runs))
    if arguments.png:
        draw(arguments.runs, arguments.png, arguments.label)
    if arguments.tasks_png:
        draw_tasks(arguments.runs, arguments.tasks_png, arguments.label)


def table(runs: list[Path], mode: str) -> str:
    rows = [
        "| run | before | after | paired gain | RL minutes | episodes |",
        "|---|---|---|---|---|---|",
    ]
    means = []
    for run in runs:
        before, after = (result(run, label, mode) for label in ("before", "after"))
        gain = paired_difference(outcomes(before), outcomes(after))
        last = metrics(run)[-1]
        rows.append(
            f"| seed {config(run)['run']['seed']} | {rate(before)} | {rate(after)} | {100 * gain.mean:+.1f} "
            f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] | {last['total/train_seconds'] / 60:.1f} "
            f"| {last['total/episodes']:.0f} |"
        )
        means.append((before["overall"]["success_rate"], after["overall"]["success_rate"]))
    start, end = 100 * np.mean(means, axis=0)
    rows.append(f"| mean of {len(runs)} | {start:.1f} % | {end:.1f} % | {end - start:+.1f} | | |")
    return "\n".join(rows)


def resources_table(runs: list[Path]) -> str:
    """Means over a run's iterations; memory as the 10th iteration's and the change from there to the last."""
    rows = [
        "| run | iterations | turns/s playing | episodes/s playing | episodes/s with learning "
        "| s per iteration: simulate, infer, learn, other | main process, MB | simulators, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        lines = metrics(run)
        parts = [mean(lines, f"time/{part}") for part in ("simulate", "infer", "learn", "other")]
        rows.append(
            f"| seed {config(run)['run']['seed']} | {len(lines)} | {mean(lines, 'speed/rollout_turns_per_second'):.0f} "
            f"| {mean(lines, 'speed/rollout_episodes_per_second'):.1f} "
            f"| {lines[-1]['total/episodes'] / lines[-1]['total/train_seconds']:.1f} "
            f"| {', '.join(f'{part:.2f}' for part in parts)} "
            f"| {growth(lines, 'memory/main_mb')} | {growth(lines, 'memory/workers_mb')} |"
        )
    return "\n".join(rows)


def mean(lines: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([line[key] for line in lines]))


def growth(lines: list[dict[str, Any]], key: str) -> str:
    start, end = lines[min(9, len(lines) - 1)][key], lines[-1][key]
    return f"{start:.0f} {100 * (end / start - 1):+.1f} %"


def task_table(runs: list[Path]) -> str:
    tasks = list(result(runs[0], "before", "greedy")["tasks"])
    rows = ["| task | before | after |", "|---|---|---|"]
    for task in tasks:
        cells = [
            np.mean([result(run, label, "greedy")["tasks"][task]["success_rate"] for run in runs])
            for label in ("before", "after")
        ]
        rows.append(f"| {task} | {100 * cells[0]:.0f} % | {100 * cells[1]:.0f} % |")
    return "\n".join(rows)


def draw(runs: list[Path], path: Path, label: str) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for index, run in enumerate(runs):
        lines = metrics(run)
        episodes = [line["total/episodes"] for line in lines]
        tasks = [key for key in lines[-1] if key.startswith("curriculum/success/")]
        success = [100 * np.mean([line[key] for key in tasks]) for line in lines]
        colour = f"C{index}"
        axes.plot(
            episodes, success, color=colour, lw=1.6, label=f"seed {config(run)['run']['seed']}"
        )
        for when, what in ((0.0, "before"), (episodes[-1], "after")):
            axes.plot(
                when,
                100 * result(run, what, "greedy")["overall"]["success_rate"],
                "o",
                color=colour,
                ms=7,
            )
    axes.set(
        xlabel="episodes of practice (PPO)",
        ylabel="success, %",
        ylim=(0, 100),
        title=label,
    )
    axes.grid(alpha=0.25)
    axes.legend(
        title="lines: training, sampled\ndots: held-out, greedy", loc="lower right", frameon=False
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def draw_tasks(runs: list[Path], path: Path, label: str) -> None:
    """A panel a task: success in training (the curriculum's window) and on held-out states before and after."""
    tasks = list(result(runs[0], "before", "greedy")["tasks"])
    columns = min(5, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.1 * columns, 1.9 * rows), layout="constrained",
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for axes, task in zip(grid.flat, tasks, strict=False):
        for index, run in enumerate(runs):
            lines = metrics(run)
            minutes = [line["total/train_seconds"] / 60 for line in lines]
            success = [100 * line[f"curriculum/success/{task}"] for line in lines]
            axes.plot(minutes, success, color=f"C{index}", lw=1.2)
            for when, what in ((0.0, "before"), (minutes[-1], "after")):
                rate = result(run, what, "greedy")["tasks"][task]["success_rate"]
                axes.plot(when, 100 * rate, "o", color=f"C{index}", ms=5, clip_on=False)
        axes.set_title(textwrap.fill(task.replace("_", " "), 28), fontsize=8)
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(
        "minutes of practice (lines: training, sampled; dots: held-out, greedy)", fontsize=8
    )
    figure.supylabel("success, %", fontsize=8)
    figure.suptitle(label, fontsize=9)
    figure.savefig(path, dpi=130)


def result(run: Path, label: str, mode: str) -> dict[str, Any]:
    return json.loads((run / "eval" / f"{label}-{mode}.json").read_text())


def config(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def outcomes(evaluation: dict[str, Any]) -> list[bool]:
    """Successes in the order of (task, initial state), which is the same before and after."""
    return [episode["success"] for episode in evaluation["episodes"]]


def rate(evaluation: dict[str, Any]) -> str:
    overall = evaluation["overall"]
    low, high = overall["interval"]
    return f"{100 * overall['success_rate']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
