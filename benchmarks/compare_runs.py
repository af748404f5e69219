"""Two or more ways to train, several seeds each: how fast do they learn, counted in episodes?

    python benchmarks/compare_runs.py --group "success alone" runs/ablation/no-reward-seed-* \
        --group "with the reward model" runs/ablation/full-seed-* --png rprm.png

Prints, for each group, sampled success in training over windows of ten iterations (mean over tasks, then over seeds,
lowest and highest seed in brackets), held-out success after practice, and the episodes needed to reach what the same
seed of the first group has in its last ten iterations, as a share of that seed's episodes (median, and each seed;
"never": not within the run). Runs are paired in the order given. Reads only what `vla-rl train` left in the folders.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float64

from vla_rl.functional import paired_difference, wilson_interval

WINDOW = 10
"""Iterations of a running mean."""


@dataclass(frozen=True)
class Curve:
    """Sampled success in training after each iteration, and the episodes played until then."""

    run: Path
    episodes: Float64[np.ndarray, " I"]
    success: Float64[np.ndarray, " I"]  # mean over tasks

    def running(self) -> Float64[np.ndarray, " J"]:
        """Means over the last WINDOW iterations, from the WINDOW-th one on."""
        return np.convolve(self.success, np.full(WINDOW, 1 / WINDOW), "valid")

    def episodes_to(self, success: float) -> float:
        """Episodes after which the running mean first is at least `success`; infinity if it never is."""
        reached = np.flatnonzero(self.running() >= success)
        return float(self.episodes[WINDOW - 1 + reached[0]]) if len(reached) else np.inf


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--group", nargs="+", action="append", required=True, metavar="NAME/RUN")
    parser.add_argument("--iterations", type=int, default=0, help="leave out what comes after")
    parser.add_argument("--png", type=Path, help="write the learning curves here")
    arguments = parser.parse_args()
    groups = {
        name: [read_curve(Path(run), arguments.iterations) for run in runs]
        for name, *runs in arguments.group
    }
    print(training_table(groups))
    print(held_out_table(groups))
    if arguments.png:
        draw(groups, arguments.png)


def read_curve(run: Path, iterations: int = 0) -> Curve:
    """A run's curve; an iteration in which a task was not played keeps that task's last success."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = lines[: iterations or None]
    if len(lines) < WINDOW:
        raise SystemExit(f"{run} has {len(lines)} iterations, at least {WINDOW} are needed")
    tasks = sorted({name for line in lines for name in line if name.startswith("success/")})
    last = dict.fromkeys(tasks, 0.0)
    success = []
    for line in lines:
        last |= {task: line[task] for task in tasks if line.get(task) is not None}
        success.append(np.mean([last[task] for task in tasks]))
    episodes = [line["total/episodes"] for line in lines]
    return Curve(run, np.array(episodes, np.float64), np.array(success, np.float64))


def training_table(groups: dict[str, list[Curve]]) -> str:
    """Success in training, window by window, and the share of episodes to the first group's end."""
    length = min(len(curve.success) for curves in groups.values() for curve in curves)
    starts = [start for start in (5, 15, 25, 40, 60) if start + WINDOW <= length]
    first = next(iter(groups.values()))
    heads = [f"iterations {start + 1} to {start + WINDOW}" for start in starts]
    rows = [
        f"\n| in training | {' | '.join(heads)} | episodes needed |",
        "|---|" + "---|" * (len(starts) + 1),
    ]
    for name, curves in groups.items():
        cells = []
        for start in starts:
            means = [100 * curve.success[start : start + WINDOW].mean() for curve in curves]
            cells.append(f"{np.mean(means):.1f} % [{min(means):.1f}, {max(means):.1f}]")
        needed = share_of_episodes(first, curves) if len(curves) == len(first) else ""
        rows.append(f"| {name} | {' | '.join(cells)} | {needed} |")
    return "\n".join(rows)


def share_of_episodes(first: list[Curve], curves: list[Curve]) -> str:
    """Episodes to the last running mean of the same seed in `first`, over that seed's episodes: median and each."""
    shares = [
        100 * curve.episodes_to(reference.running()[-1]) / reference.episodes[-1]
        for reference, curve in zip(first, curves, strict=True)
    ]
    words = [f"{share:.0f} %" if np.isfinite(share) else "never" for share in shares]
    median = float(np.median(shares))
    return f"{f'{median:.0f} %' if np.isfinite(median) else 'never'} ({', '.join(words)})"


def held_out_table(groups: dict[str, list[Curve]]) -> str:
    """Success after practice on held-out states, and the paired difference to the first group, seed by seed."""
    rows = ["\n| held out | greedy | difference | sampled | difference |", "|---|---|---|---|---|"]
    reference: dict[str, list[bool]] = {}
    for name, curves in groups.items():
        cells = []
        for mode in ("greedy", "sampled"):
            found = [success for curve in curves for success in outcomes(curve.run, mode)]
            low, high = wilson_interval(sum(found), len(found))
            cells.append(f"{100 * np.mean(found):.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
            if mode in reference and len(reference[mode]) == len(found):
                gain = paired_difference(reference[mode], found)
                cells.append(
                    f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
                )
            else:
                cells.append("")
            reference.setdefault(mode, found)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def outcomes(run: Path, mode: str) -> list[bool]:
    """Of every episode evaluated after practice."""
    result: dict[str, Any] = json.loads((run / "eval" / f"after-{mode}.json").read_text())
    return [bool(episode["success"]) for episode in result["episodes"]]


def draw(groups: dict[str, list[Curve]], path: Path) -> None:
    """A line for each group's mean over seeds, thin ones for its seeds."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for index, (name, curves) in enumerate(groups.items()):
        length = min(len(curve.success) for curve in curves)
        running = np.array([curve.running()[: length - WINDOW + 1] for curve in curves])
        episodes = np.array([curve.episodes[WINDOW - 1 : length] for curve in curves])
        for x, y in zip(episodes, running, strict=True):
            axes.plot(x, 100 * y, color=f"C{index}", alpha=0.3, linewidth=1)
        axes.plot(episodes.mean(0), 100 * running.mean(0), color=f"C{index}", label=name)
    axes.set(xlabel="episodes played", ylabel="success in training, % (sampled)", ylim=(0, 100))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
