"""Policies side by side as the paper's main table has them: success of each task, the mean, the average rank.

    python benchmarks/main_table.py SFT="runs/*/eval/before-greedy.json" ACT=act.json

Each name stands for the evaluations of one method, one for each seed: files of `vla-rl eval --json`, or those in a run
folder. All must have played the same initial states. The rank of a method is its place by success on a task, averaged
over the tasks; methods that are level share the mean of their places.
"""

from __future__ import annotations

import argparse
import json
from glob import glob
from pathlib import Path
from statistics import mean
from typing import Any

from vla_rl.functional import wilson_interval

Evaluations = list[dict[str, Any]]


def read(words: list[str]) -> dict[str, Evaluations]:
    """Name -> its evaluations. SystemExit where there is no file, or initial states differ."""
    found: dict[str, Evaluations] = {}
    played: set[tuple[Any, ...]] = set()
    for word in words:
        name, _, pattern = word.partition("=")
        files = sorted(glob(pattern))
        if not files:
            raise SystemExit(f"{word}: expected NAME=FILES, and no file is called {pattern!r}")
        for file in files:
            result = json.loads(Path(file).read_text(encoding="utf-8"))
            found.setdefault(name, []).append(result)
            played.add(tuple(sorted((e["task"], e["initial_state"]) for e in result["episodes"])))
    if len(played) > 1:
        raise SystemExit("the evaluations are not of the same tasks and initial states")
    return found


def places(rates: dict[str, float]) -> dict[str, float]:
    """1 is the best; those that are level share the mean of their places."""
    return {
        name: 1 + sum(other > rate for other in rates.values()) + (list(rates.values()).count(rate) - 1) / 2
        for name, rate in rates.items()
    }  # fmt: skip


def table(found: dict[str, Evaluations]) -> str:
    """The table in Markdown; intervals are Wilson's over all episodes of a method, 95 %."""
    tasks = list(next(iter(found.values()))[0]["tasks"])
    rates = {
        task: {
            name: mean(result["tasks"][task]["success_rate"] for result in results)
            for name, results in found.items()
        }
        for task in tasks
    }
    ranks = {task: places(rates[task]) for task in tasks}
    lines = [
        "| | " + " | ".join(tasks) + " | mean | average rank | seeds |",
        "|---" * (len(tasks) + 4) + "|",
    ]
    for name, results in found.items():
        won = sum(result["overall"]["successes"] for result in results)
        tried = sum(result["overall"]["episodes"] for result in results)
        low, high = wilson_interval(won, tried)
        cells = [f"{100 * rates[task][name]:.0f} %" for task in tasks]
        overall = f"{100 * won / tried:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        rank = f"{mean(ranks[task][name] for task in tasks):.1f}"
        lines.append(f"| {name} | " + " | ".join([*cells, overall, rank, str(len(results))]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The paper's main table, of evaluations")
    parser.add_argument("methods", nargs="+", metavar="NAME=FILES")
    print(table(read(parser.parse_args().methods)))


if __name__ == "__main__":
    main()
