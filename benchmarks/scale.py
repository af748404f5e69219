"""One protocol for throughput, from the laptop to the cluster: the same work in several arrangements, side by side.

python benchmarks/scale.py metaworld-mt5 --checkpoint runs/quickstart/sft/policy \
    --arrangement single --arrangement "ranks 2: --parallel.ranks 2" --json scale.json

Each arrangement trains `--iterations` iterations from the same checkpoint with `vla-rl train`, in turn, `--repeats`
times over: what else the machine does falls on all alike. The first iteration of a run is left out. Of the rest the
means are taken, and the ratio to the first arrangement is that of each round, with its smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from vla_rl.rollout.metrics import PHASES
from vla_rl.runtime.metrics import read_metrics
from vla_rl.runtime.provenance import describe_run

RATES = ("turns_per_second", "simulator_steps_per_second", "episodes_per_second")


def main() -> None:
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("preset")
    words.add_argument("--checkpoint", help="what practice starts from; the preset toy needs none")
    words.add_argument(
        "--arrangement", action="append", required=True, metavar="NAME[: OPTIONS]",
        help="its name, and the options of `vla-rl train` that make it; may be given several times",
    )  # fmt: skip
    words.add_argument("--iterations", type=int, default=6)
    words.add_argument("--repeats", type=int, default=3)
    words.add_argument("--options", default="", help="of `vla-rl train`, for all arrangements")
    words.add_argument("--json", type=Path)
    asked = words.parse_args()
    if asked.iterations < 2:
        words.error("the first iteration is left out: --iterations must be 2 or more")
    arrangements = {
        name.strip(): shlex.split(options)
        for name, _, options in (given.partition(":") for given in asked.arrangement)
    }
    common = [asked.preset, *shlex.split(asked.options)]
    if asked.checkpoint:
        common += ["--policy.checkpoint", asked.checkpoint]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in arrangements}
    for number in range(asked.repeats):
        for name, options in arrangements.items():
            found = measure([*common, *options], asked.iterations)
            rounds[name].append(found)
            print(
                f"round {number + 1}, {name}: {found['turns_per_second']:.1f} turns/s",
                file=sys.stderr,
            )
    print(table(rounds))
    if asked.json:
        result = {"rounds": rounds, "arrangements": arrangements, **describe_run(sys.argv)}
        asked.json.write_text(json.dumps(result, indent=2))


def measure(options: Sequence[str], iterations: int) -> dict[str, float]:
    """Train, and return the means over all iterations but the first."""
    with tempfile.TemporaryDirectory() as root:
        command = [
            sys.executable, "-m", "vla_rl", "train", *options, "--schedule.iterations", str(iterations),
            "--schedule.episodes", "0", "--schedule.minutes", "0", "--eval.episodes-per-task", "1",
            "--eval.videos", "0", "--run.root", root, "--run.name", "run", "--run.trackers", "none",
            "--run.save-every", "1000000",
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{shlex.join(command)}\n{done.stderr}")
        lines = read_metrics(Path(root) / "run" / "metrics.jsonl")[1:]
    return summary(lines)


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Rates over whole iterations, and seconds of each phase an iteration (the mean over ranks)."""
    seconds = {phase: mean(line[f"time/{phase}"] for line in lines) for phase in PHASES}
    whole = sum(seconds.values())
    counts = {
        "turns_per_second": mean(line["rollout/turns"] for line in lines),
        "simulator_steps_per_second": mean(line["rollout/simulator_steps"] for line in lines),
        "episodes_per_second": mean(line["rollout/episodes"] for line in lines),
    }
    memory = mean(line["memory/main_mb"] + line["memory/workers_mb"] for line in lines)
    return {name: count / whole for name, count in counts.items()} | {
        **seconds, "iteration": whole, "memory_mb": memory,
    }  # fmt: skip


def table(rounds: dict[str, list[dict[str, float]]]) -> str:
    """The arrangements in Markdown, each beside the first."""
    first = next(iter(rounds.values()))
    lines = [
        "| arrangement | turns/s | simulator steps/s | episodes/s | beside the first | s an iteration: "
        + ", ".join(PHASES)
        + " | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in rounds.items():
        rates = [f"{mean(one[rate] for one in found):.1f}" for rate in RATES]
        ratios = [
            one["turns_per_second"] / other["turns_per_second"]
            for one, other in zip(found, first, strict=True)
        ]
        beside = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        whole = f"{mean(one['iteration'] for one in found):.2f}"
        phases = ", ".join(f"{mean(one[phase] for one in found):.2f}" for phase in PHASES)
        memory = f"{mean(one['memory_mb'] for one in found):.0f}"
        lines.append(f"| {name} | {' | '.join(rates)} | {beside} | {whole}: {phases} | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
