"""What goes wrong with pools comes as one message, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pool_runs import lines, pools

from vla_rl.config import UserError
from vla_rl.config.env import EnvConfig
from vla_rl.config.parallel import ParallelConfig
from vla_rl.distributed import ray_cluster
from vla_rl.recipes.ranks import train_on_ranks
from vla_rl.types import EpisodeSpec

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")


def test_a_machine_with_other_software_is_refused(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ray_cluster.software_here()
    monkeypatch.setattr(ray_cluster, "software_here", lambda: here | {"torch": "9.9"})
    with (
        pytest.raises(UserError, match=r"node .* has other software .*torch .* instead of 9.9"),
        ray_cluster.open_cluster(ParallelConfig(arrangement="pools")),
    ):
        pass


def test_an_actor_that_has_loaded_another_policy_is_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vla_rl.policies import OpenVLAPolicy

    monkeypatch.setattr(OpenVLAPolicy, "fingerprint", lambda self: "another")
    with pytest.raises(UserError, match=r"actor 0 has loaded another policy than the learner"):
        train_on_ranks(pools(tmp_path, "run", actors=1))


def hosted(hosts: int = 2, **settings: Any) -> Any:
    from vla_rl.envs.vector.hosted import HostedVectorEnv

    config = EnvConfig(suite="toy", num_envs=4, image_size=32, horizon=20, **settings)
    return HostedVectorEnv(config, hosts, timeout=60.0, cpus=0.1, workers=1)


def test_a_simulator_that_a_host_does_not_have_is_one_message(cluster: Any) -> None:
    from vla_rl.envs.vector.hosted import HostedVectorEnv

    class Missing(HostedVectorEnv):
        def _new_worker(self, worker: int) -> Any:
            self._make_envs = no_simulator
            return super()._new_worker(worker)

    def no_simulator(config: EnvConfig, count: int) -> Any:
        raise UserError("Meta-World is not installed: pip install 'vla-rl[metaworld]'")

    config = EnvConfig(suite="toy", num_envs=4)
    with pytest.raises(UserError, match=r"^simulator host 0: Meta-World is not installed"):
        Missing(config, 2, timeout=60.0, cpus=0.1, workers=1)


def test_snapshots_and_dense_rewards_go_through_hosts(cluster: Any) -> None:
    from vla_rl.envs import make_vector_env

    config = EnvConfig(suite="toy", num_envs=4, image_size=32, horizon=20)
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 4, 1, 4)).astype(np.float32)
    with make_vector_env(config) as near, hosted() as far:
        seen = []
        for envs in (near, far):
            chunk = np.repeat(actions[..., : envs.action_dim], config.action_chunk, axis=2)
            envs.post_reset(range(4), [EpisodeSpec(envs.tasks[0], i) for i in range(4)])
            envs.wait(range(4))
            envs.post_step(range(4), chunk[0])
            envs.wait(range(4))
            kept = envs.snapshot([1, 2])
            rewards = envs.dense_rewards([3, 0])
            envs.post_step([1, 2], chunk[1][1:3])
            envs.wait([1, 2])
            back = envs.restore([2, 1], kept)
            seen.append((back, rewards))
        (one, first), (other, second) = seen
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(first, second)
        assert one.instructions == other.instructions


def test_a_host_that_dies_while_it_is_asked_loses_its_own_slots(cluster: Any) -> None:
    with hosted() as envs:
        envs.post_reset(range(4), [EpisodeSpec(envs.tasks[0], i) for i in range(4)])
        envs.wait(range(4))
        os.kill(envs.worker_pids()[0], signal.SIGKILL)
        envs.post_step(range(4), np.zeros((4, 1, envs.action_dim), np.float32))
        result = envs.wait(range(4))
        assert result.lost.tolist() == [True, False, True, False]
        assert envs.infrastructure_errors == 1
        envs.post_reset([0, 2], [EpisodeSpec(envs.tasks[0], 0)] * 2)
        assert not envs.wait([0, 2]).lost.any()


def started(out: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "vla_rl", "train", "toy", "--parallel.arrangement", "pools", "--run.root", str(out),
        "--run.name", "run", "--env.num-envs", "8", "--eval.episodes-per-task", "1", "--eval.videos", "0", *options,
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_cluster_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    process = started(tmp_path, "--parallel.ray", "127.0.0.1:1")
    _, said = process.communicate()
    assert process.returncode == 2
    assert "there is no Ray cluster at parallel.ray = 127.0.0.1:1" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_a_run_is_stopped_or_killed(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = started(
        tmp_path, "--parallel.learners", "2", "--parallel.actors", "1", "--parallel.hosts", "2",
        "--run.save-every", "1", "--schedule.iterations", "1000", "--schedule.episodes", "0",
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("LearnerRank" in " ".join(one.cmdline()) for one in family)
    process.send_signal(number)
    _, said = process.communicate()
    _, alive = psutil.wait_procs(family, timeout=150)
    assert [one for one in alive if one.is_running() and one.status() != "zombie"] == []
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "Go on with: vla-rl train --resume" in " ".join(said.split())
        assert len(list((tmp_path / "run" / "checkpoints").glob("iteration-*"))) > 0
    assert len(lines(tmp_path / "run")) >= 2
