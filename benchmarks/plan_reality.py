"""`vla-rl plan` against reality: costs from one run, then seconds a window of three runs that it has not seen.

    python benchmarks/plan_reality.py --out runs/reality

The runs are short and start from random weights, which costs the same as any others: one process with 32 environments
and two actions a turn, from which costs are taken; then two ranks, 48 environments, and four actions a turn. A window
is the median of those after the warm-up. How much of the machine others used meanwhile is measured beside each run: on
a machine that is not idle, the figures are not what the plan is about.

    --busy 0.1     begin a run only where others use at most so much of the machine, and wait for it
    taskset -c 1 python benchmarks/plan_reality.py ...      on one core, where others need the rest
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from vla_rl.config import TrainConfig
from vla_rl.planning.calibration import calibrated, steady_rows
from vla_rl.planning.costs import packaged
from vla_rl.planning.plan import Row, plan
from vla_rl.planning.timing import PHASES
from vla_rl.recipes.plan import machine_of
from vla_rl.runtime.cpus import available_cpus
from vla_rl.runtime.metrics import read_metrics
from vla_rl.runtime.run_folder import read_config

BASE = [
    *("metaworld-mt1", "--policy.scratch", "tiny", "--eval.episodes-per-task", "36"),
    *("--run.trackers", "none", "--schedule.iterations", "8"),
]
CASES = {
    "calibration": [],
    "two ranks": ["--parallel.ranks", "2"],
    "48 environments": ["--env.num-envs", "48"],
    "four actions a turn": ["--env.action-chunk", "4"],
}
BAR = 0.15
LOOK = 1.0  # seconds between two looks at the machine


@dataclass
class Watch:
    """Shares of the cores that this process may use which others use, looked at every second."""

    shares: list[float] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def watch(self, process: psutil.Process) -> None:
        """Until it is stopped: all that is busy without `process` and its children."""
        known: dict[int, float] = {}
        busy = self.busy()
        while not self.stopped.wait(LOOK):
            own = 0.0
            for one in self._family(process):
                try:
                    spent = sum(one.cpu_times()[:2])
                except psutil.Error:
                    continue
                own += spent - known.get(one.pid, spent)
                known[one.pid] = spent
            now = self.busy()
            self.shares.append(max(0.0, now - busy - own) / LOOK / available_cpus())
            busy = now

    @staticmethod
    def busy() -> float:
        """Seconds in which our cores were not idle."""
        every = psutil.cpu_times(percpu=True)
        ours = [every[core] for core in psutil.Process().cpu_affinity() or range(len(every))]
        return sum(sum(times[:3]) + getattr(times, "steal", 0.0) for times in ours)

    @staticmethod
    def _family(process: psutil.Process) -> list[psutil.Process]:
        try:
            return [process, *process.children(recursive=True)]
        except psutil.Error:
            return []


def wait_for_quiet(busy: float) -> None:
    """Until others have used at most `busy` of the machine for five seconds."""
    while True:
        before = Watch.busy()
        time.sleep(5.0)
        if Watch.busy() - before <= busy * 5.0 * available_cpus():
            return


def play(name: str, words: list[str], out: Path) -> tuple[Path, float]:
    """One run; returns its folder, and the share of the machine that others used."""
    folder = out / name.replace(" ", "-")
    command = [sys.executable, "-m", "vla_rl", "train", *BASE, *words]
    command += ["--run.root", str(out), "--run.name", folder.name]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watch = Watch()
    watcher = threading.Thread(target=watch.watch, args=(psutil.Process(child.pid),))
    watcher.start()
    code = child.wait()
    watch.stopped.set()
    watcher.join()
    if code != 0:
        raise SystemExit(f"{name}: the run ended with {code}")
    return folder, statistics.mean(watch.shares or [0.0])


def windows(folder: Path) -> tuple[TrainConfig, float, dict[str, float]]:
    """The run's configuration, the median of its windows in seconds, and the phases that it tells."""
    config = read_config(folder, TrainConfig)
    rows = steady_rows(read_metrics(folder / "metrics.jsonl"), config)
    seconds = [row["rollout/turns"] / row["speed/turns_per_second"] for row in rows]
    phases = {
        name: statistics.median(row[f"time/{name}"] for row in rows)
        for name in ("simulate", "infer", "learn")
    }
    return config, statistics.median(seconds), phases


def predict(config: TrainConfig, costs_of: Path) -> Row:
    """The arrangement that the run had, planned with the costs of another run."""
    base = packaged("laptop")
    config = replace(config, run=replace(config.run, name=""))
    made = plan(config, machine_of(1, 0, 80.0, "h200"), calibrated(costs_of, base).over(base))
    return next(row for row in made.rows if row.arrangement.ranks == config.parallel.ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--busy", type=float, default=1.0)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args()
    others: dict[str, float] = {}
    notes = arguments.out / "others.json"
    if notes.is_file():
        others = json.loads(notes.read_text(encoding="utf-8"))
    for name, words in CASES.items():
        if name in arguments.cases and not (arguments.out / name.replace(" ", "-")).exists():
            wait_for_quiet(arguments.busy)
            _, others[name] = play(name, words, arguments.out)
            notes.write_text(json.dumps(others), encoding="utf-8")
    print(
        "| run | measured, s | planned, s | difference | others used | simulate, infer, learn | planned |"
    )
    print("|---|---:|---:|---:|---:|---|---|")
    for name in CASES:
        folder = arguments.out / name.replace(" ", "-")
        if not folder.exists():
            continue
        config, measured, phases = windows(folder)
        row = predict(config, arguments.out / "calibration")
        off = row.times.seconds / measured - 1
        said = ", ".join(f"{phases[name]:.2f}" for name in phases)
        meant = ", ".join(f"{p} {getattr(row.times, p):.2f}" for p in PHASES)
        print(
            f"| {name} | {measured:.2f} | {row.times.seconds:.2f} | {off:+.1%}{'' if abs(off) <= BAR else ' (!)'} "
            f"| {others.get(name, float('nan')):.0%} | {said} | {meant} |"
        )


if __name__ == "__main__":
    main()
