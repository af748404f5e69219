"""Kill processes of a run in pools at random moments, and look at what becomes of it.

    python benchmarks/kill.py --times 5 --out kill.json

A short run of the toy benchmark with two learners, an actor and two simulator hosts. It is played once undisturbed,
then again for each victim and time, and somebody is killed (SIGKILL) at a moment drawn from the undisturbed run's
length. A run that ends by it is gone on with. Needs Ray: pip install 'vla-rl[ray]'.

    result   same: the numbers and weights of the undisturbed run, to the bit
             whole: other numbers, every iteration and episode counted once
    left     processes of the run that are there a minute after its end
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

VICTIMS = {"actor": "PlayingActor", "host": "SimulatorHost", "learner": "LearnerRank"}
TIMED = (
    "time/",
    "speed/",
    "memory/",
    "wall_seconds",
    "total/train_seconds",
    "rollout/infrastructure",
)
OPTIONS = [
    "toy", "--parallel.arrangement", "pools", "--parallel.learners", "2", "--parallel.actors", "1",
    "--parallel.hosts", "2", "--parallel.timeout", "120", "--env.num-envs", "8", "--rollout.turns", "16",
    "--ppo.critic-warmup", "1", "--schedule.episodes", "0", "--eval.episodes-per-task", "1", "--eval.videos", "0",
    "--run.save-every", "2", "--run.name", "run",
]  # fmt: skip


def start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vla_rl", "train", *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lines(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def numbers(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if not name.startswith(TIMED)}
        for line in lines(run)
    ]


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("iteration-*"))
    return {
        f"{file.stem}/{name}": tensor
        for file in sorted(newest.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def same(run: Path, expected: Path) -> bool:
    own, theirs = weights(run), weights(expected)
    return numbers(run) == numbers(expected) and all(torch.equal(own[n], theirs[n]) for n in theirs)


def counted_once(run: Path, iterations: int) -> bool:
    found = lines(run)
    episodes = sum(line["rollout/episodes"] for line in found)
    return [line["iteration"] for line in found] == list(range(1, iterations + 1)) and found[-1][
        "total/episodes"
    ] == episodes


def kill_one(parent: int, kind: str, rng: random.Random) -> bool:
    """Kill one of the run's processes of this kind; False where there is none yet, or any more."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if VICTIMS[kind] in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    if not found:
        return False
    os.kill(rng.choice(found).pid, signal.SIGKILL)
    return True


def disturbed(
    kind: str, at: float, out: Path, iterations: int, expected: Path, rng: random.Random
) -> dict[str, Any]:
    """One run with a death `at` seconds after its first iteration."""
    words = ["--schedule.iterations", str(iterations)]
    process = start([*OPTIONS, "--run.root", str(out), *words])
    run, family = out / "run", set()
    while not lines(run) and process.poll() is None:
        time.sleep(0.1)
    time.sleep(at)
    begun = time.monotonic()
    killed = process.poll() is None
    if killed:
        family = set(psutil.Process(process.pid).children(recursive=True))
        killed = kill_one(process.pid, kind, rng)
    _, said = process.communicate(timeout=600)
    seconds = time.monotonic() - begun
    code, messages = process.returncode, [line for line in said.splitlines() if "vla-rl:" in line]
    if code != 0:
        _, again = start(["--resume", str(run)]).communicate(timeout=600)
        messages += [line for line in again.splitlines() if "Traceback" in line]
    _, left = psutil.wait_procs(list(family), timeout=60)
    result = (
        "same" if same(run, expected) else "whole" if counted_once(run, iterations) else "WRONG"
    )
    return {
        "victim": kind, "after": round(at, 2), "killed": killed, "exit": code, "seconds to the end": round(seconds, 1),
        "result": result, "errors": lines(run)[-1]["rollout/infrastructure_errors"],
        "left": sum(one.is_running() and one.status() != "zombie" for one in left), "said": messages[-1:],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng, results = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        words = ["--run.root", str(root), "--schedule.iterations", str(arguments.iterations)]
        process = start([*OPTIONS, *words])
        _, said = process.communicate()
        if process.returncode != 0:
            sys.exit(said)
        playing = lines(root / "run")[-1]["total/train_seconds"]
        for kind in arguments.victims:
            for number in range(arguments.times):
                at = rng.uniform(0, 0.7 * playing)
                out = root / f"{kind}-{number}"
                results.append(disturbed(kind, at, out, arguments.iterations, root / "run", rng))
                print(json.dumps(results[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
