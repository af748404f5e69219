"""Ranks that torchrun and srun start: real processes, which meet, compare and end together."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from vla_rl.config import TrainConfig
from vla_rl.runtime.run_folder import read_config

SMALL = [
    *("toy", "--env.num-envs", "4", "--schedule.iterations", "3", "--schedule.episodes", "0"),
    *("--rollout.turns", "4", "--ppo.minibatch", "16", "--eval.episodes-per-task", "1"),
    *("--eval.videos", "0", "--run.save-every", "1", "--parallel.timeout", "100"),
]


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def environment(rank: int, size: int, port: int, **more: str) -> dict[str, str]:
    """As srun makes it on one machine."""
    return os.environ | {
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0",
        "SLURM_STEP_NUM_TASKS": str(size), "SLURM_STEP_TASKS_PER_NODE": str(size),
        "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    } | more  # fmt: skip


def start(
    words: Sequence[str], rank: int, size: int, port: int, **more: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vla_rl", "train", *words], env=environment(rank, size, port, **more),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ends(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each; none is left."""
    try:
        found = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, found, strict=True)]


def metrics_of(run: Path) -> list[str]:
    """Success and length of all that was played, iteration by iteration."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = ("rollout/success_rate", "rollout/episode_length", "total/turns", "total/episodes")
    return [str([line[name] for name in wanted]) for line in lines]


@pytest.mark.slow
def test_torchrun_and_srun_run_the_run_of_one_process(tmp_path: Path) -> None:
    root = ["--run.root", str(tmp_path), "--run.name"]
    alone = [sys.executable, "-m", "vla_rl", "train", *SMALL, *root, "alone"]
    subprocess.run(alone, check=True, capture_output=True)
    torchrun = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vla_rl",
            "train", *SMALL, *root, "torchrun",
        ],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert torchrun.returncode == 0, torchrun.stderr
    assert torchrun.stdout.count("Run folder:") == 1
    port = free_port()
    srun = ends([start([*SMALL, *root, "srun"], rank, 2, port) for rank in range(2)])
    assert [code for code, _, _ in srun] == [0, 0], srun
    assert srun[1][1] == ""
    assert "PPO" not in srun[1][2]
    expected = metrics_of(tmp_path / "alone")
    assert metrics_of(tmp_path / "torchrun") == expected
    assert metrics_of(tmp_path / "srun") == expected
    assert read_config(tmp_path / "srun", TrainConfig).parallel.ranks == 2

    # Slurm starts a job again: it goes on where it was, on another number of ranks too
    more = ["--schedule.iterations", "4"]
    again = ends(
        [
            start([*SMALL, *more, *root, "srun"], rank, 3, port, SLURM_RESTART_COUNT="1")
            for rank in range(3)
        ]
    )
    assert [code for code, _, _ in again] == [0, 0, 0], again
    assert "going on with" in again[0][2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ppo.minibatch", "8"], r"has ppo.minibatch 8, rank 0 on .* has 16: give all ranks"),
        (["--ppo.minibatchh", "8"], "minibatchh"),
        (["--policy.device", "cuda:9"], "has policy.device cuda:9, rank 0"),
    ],
)
def test_ranks_that_were_asked_for_different_things_end_at_once(
    words: list[str], said: str, tmp_path: Path
) -> None:
    port, root = free_port(), ["--run.root", str(tmp_path)]
    (code, _, err), (other_code, _, other_err) = ends(
        [start([*SMALL, *root], 0, 2, port), start([*SMALL, *root, *words], 1, 2, port)]
    )
    assert (code, other_code) == (2, 2)
    assert re.search(said, err), err
    assert len(err.splitlines()) == 1
    assert other_err == "", "said twice"
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_more_ranks_than_shards_and_another_number_than_asked_for(tmp_path: Path) -> None:
    for words, said in (
        (["--parallel.ranks", "3"], "srun has started 2 processes, parallel.ranks is 3"),
        (["--parallel.shards", "1"], "parallel.ranks may be at most parallel.shards = 1, got 2"),
    ):
        port = free_port()
        found = ends(
            [
                start([*SMALL, *words, "--run.root", str(tmp_path)], rank, 2, port)
                for rank in range(2)
            ]
        )
        assert [code for code, _, _ in found] == [2, 2]
        assert said in found[0][2]
        assert found[1][2] == "", "said twice"


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ((code, _, err),) = ends([start([*SMALL, "--run.root", str(tmp_path)], 0, 2, port)])
    assert code == 2
    assert f"port {port}" in err
    assert "MASTER_PORT" in err


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    """Also where nobody else looks after them; the reason is then that it is silent, not why."""
    port, root = free_port(), ["--run.root", str(tmp_path), "--run.name", "killed"]
    words = [*SMALL, "--schedule.iterations", "500", *root]
    processes = [start(words, rank, 2, port) for rank in range(2)]
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not metrics.is_file() or not metrics.read_text():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].kill()
    (code, _, err), _ = ends(processes)
    assert code == 2
    assert "rank 0 of 2 waited for the others in vain" in err
