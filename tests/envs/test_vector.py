"""Worker processes: order of work, faults, start-up failures, nothing left behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from faulty_envs import (
    EXIT,
    HANG,
    PRINT,
    RAISE,
    SEGFAULT,
    USER_ERROR,
    make_faulty_envs,
    make_uninstalled_envs,
    make_unstartable_envs,
    order,
)

from vla_rl.config import ConfigError, EnvConfig, UserError
from vla_rl.envs.known_answers import make_bandit_envs, make_chain_envs
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.runtime import children
from vla_rl.types import EpisodeSpec

CONFIG = EnvConfig(
    image_size=11,
    action_repeat=1,
    action_chunk=1,
    horizon=8,
    num_envs=5,
    num_workers=2,
    step_timeout=120.0,
)
START = EpisodeSpec("chain", 0)
MOVE = order(0.0)
BEFORE: set[int] = set()
"""Processes that other tests have left at work, such as a pool that is kept."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """How a worker ended is waited for, however long a busy machine takes over it."""
    monkeypatch.setattr(children, "CLOSE_TIMEOUT", 120.0)
    BEFORE.clear()
    BEFORE.update(child.pid for child in psutil.Process().children(recursive=True))


def started(config: EnvConfig = CONFIG) -> ProcessVectorEnv:
    """Every slot at the start of an episode."""
    envs = ProcessVectorEnv(config, make_faulty_envs)
    every = list(range(config.num_envs))
    envs.post_reset(every, [START] * config.num_envs)
    envs.wait(every)
    return envs


def test_processes_give_what_one_process_gives():
    """The same episodes through workers and in this process: results, observations and their order are equal."""
    every = list(range(5))
    specs = [EpisodeSpec("chain", k) for k in every]
    rng = np.random.default_rng(0)
    with (
        ProcessVectorEnv(CONFIG, make_chain_envs) as many,
        SerialVectorEnv(CONFIG, make_chain_envs) as one,
    ):
        assert (many.tasks, many.instructions) == (one.tasks, one.instructions)
        assert (many.num_envs, many.action_dim, many.horizon) == (5, 4, 8)
        for envs in (many, one):
            envs.post_reset(every, specs)
            envs.wait(every)
        for _ in range(20):
            slots = [int(s) for s in rng.permutation(5)[: rng.integers(1, 6)]]
            actions = rng.uniform(-1, 1, (len(slots), 1, 4)).astype(np.float32)
            results = []
            for envs in (many, one):
                envs.post_step(slots, actions)
                results.append(envs.wait(slots[::-1]))
            a, b = results
            assert a.slots.tolist() == slots[::-1]
            for name in ("slots", "rewards", "terminated", "truncated", "simulator_steps", "lost"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
            for name in ("images", "proprio", "time_fraction"):
                np.testing.assert_array_equal(
                    getattr(a.observation, name), getattr(b.observation, name), err_msg=name
                )
            assert a.observation.instructions == b.observation.instructions
            ended = [int(s) for s in a.slots[a.terminated | a.truncated]]
            if ended:
                for envs in (many, one):
                    envs.post_reset(ended, [START] * len(ended))
                    envs.wait(ended)


def test_the_final_observation_stays_until_the_caller_resets():
    with ProcessVectorEnv(replace(CONFIG, num_envs=1), make_chain_envs) as envs:
        envs.post_reset([0], [EpisodeSpec("chain", 3)])
        first = envs.wait([0]).observation
        results = []
        for _ in range(2):
            envs.post_step([0], MOVE)
            results.append(envs.wait([0]))
    assert [bool(r.terminated[0]) for r in results] == [False, True]
    assert [float(r.rewards[0]) for r in results] == [0.0, 1.0]
    assert results[1].observation.images.min() == 255  # the whole corridor walked
    assert first.images.min() == 0  # earlier results are copies
    assert results[1].observation.time_fraction[0] == np.float32(2 / 8)


def test_time_limit_truncates():
    with ProcessVectorEnv(replace(CONFIG, num_envs=1, horizon=2), make_chain_envs) as envs:
        envs.post_reset([0], [START])
        envs.wait([0])
        flags = []
        for _ in range(2):
            envs.post_step([0], order(0.0, first=-1.0))
            result = envs.wait([0])
            flags.append(
                (bool(result.terminated[0]), bool(result.truncated[0]), float(result.rewards[0]))
            )
    assert flags == [(False, False, 0.0), (False, True, 0.0)]


def test_one_half_is_collected_while_the_other_works():
    """Slots of both halves sit in both workers; a half can be stepped again before the other was waited for."""
    with ProcessVectorEnv(replace(CONFIG, num_envs=4), make_chain_envs) as envs:
        assert len(set(envs.worker_pids())) == 2
        envs.post_reset([0, 1], [START] * 2)
        envs.post_reset([2, 3], [START] * 2)
        for _ in range(3):
            envs.wait([0, 1])
            envs.post_step([0, 1], order(0.0, 2))
        second = envs.wait([2, 3])
        first = envs.wait([0, 1])
    assert second.simulator_steps.tolist() == [0, 0]
    np.testing.assert_allclose(first.observation.time_fraction, 3 / 8)
    np.testing.assert_allclose(second.observation.time_fraction, 0)


@pytest.mark.usefixtures("shapes_unchecked")
def test_misuse_is_told_apart():
    with ProcessVectorEnv(CONFIG, make_chain_envs) as envs:
        with pytest.raises(RuntimeError, match="post_reset first"):
            envs.post_step([0], MOVE)
        with pytest.raises(ConfigError, match="chain"):
            envs.post_reset([0], [EpisodeSpec("chian", 0)])
        envs.post_reset([0, 1], [START] * 2)
        with pytest.raises(RuntimeError, match="wait for slots"):
            envs.post_reset([1], [START])
        envs.wait([0])
        with pytest.raises(RuntimeError, match="nothing was posted"):
            envs.wait([0])
        with pytest.raises(ValueError, match=r"\(S, C, 4\)"):
            envs.post_step([0], np.zeros((1, 4), dtype=np.float32))
        with pytest.raises(ValueError, match="2 slots but work for 1"):
            envs.post_step([0, 0], MOVE)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (EXIT, "exit code 3"),
        (RAISE, "the gearbox is full of sand"),
        (SEGFAULT, "Segmentation fault"),
    ],
)
def test_a_crash_loses_the_workers_episodes_and_nothing_else(
    what: float, words: str, caplog: pytest.LogCaptureFixture
):
    envs = started()
    with envs, caplog.at_level(logging.WARNING):
        before = envs.worker_pids()
        # slots 0, 2, 4 live in worker 0; 2 has work outstanding, 4 has not
        envs.post_step([0, 1, 2], np.concatenate([order(what), MOVE, MOVE]))
        result = envs.wait([0, 1, 2])
        assert result.lost.tolist() == [True, False, True]
        assert result.rewards.tolist() == [0, 0, 0]
        assert not result.terminated.any()
        assert not result.truncated.any()
        assert envs.infrastructure_errors == 1
        after = envs.worker_pids()
        assert after[0] != before[0]
        assert after[1] == before[1]
        assert [words in record.getMessage() for record in caplog.records] == [True]

        # the quiet one of the same worker comes back as lost when it is stepped; the other worker plays on
        envs.post_step([3, 4], order(0.0, 2))
        assert envs.wait([3, 4]).lost.tolist() == [False, True]
        envs.post_reset([0, 2, 4], [START] * 3)
        assert not envs.wait([0, 2, 4]).lost.any()
        envs.post_step(range(5), order(0.0, 5))
        again = envs.wait(range(5))
        assert not again.lost.any()
        np.testing.assert_allclose(again.observation.time_fraction * 8, [1, 2, 1, 2, 1])
        assert envs.infrastructure_errors == 1


def with_timeout(envs: ProcessVectorEnv, seconds: float) -> None:
    """From now on, so that the answers before it may take as long as they like."""
    envs._config = replace(envs._config, step_timeout=seconds)


def test_a_hung_worker_is_replaced():
    envs = started()
    with envs:
        hung = envs.worker_pids()[1]
        envs.post_step([0, 1], np.concatenate([MOVE, order(HANG)]))
        assert envs.wait([0]).lost.tolist() == [False]
        with_timeout(envs, 0.2)
        assert envs.wait([1]).lost.tolist() == [True]
        assert envs.infrastructure_errors == 1
        assert not psutil.pid_exists(hung)


def test_an_answer_that_is_there_is_not_late():
    """The learner may compute for longer than step_timeout between posting and waiting."""
    envs = started()
    with envs:
        envs.post_step([0], MOVE)
        assert envs._workers[0]._connection.poll(CONFIG.step_timeout)
        with_timeout(envs, 1e-9)
        assert not envs.wait([0]).lost.any()


def test_too_many_restarts_end_the_run():
    envs = started(replace(CONFIG, max_restarts=1))
    with envs:
        envs.post_step([0], order(RAISE))
        assert envs.wait([0]).lost.all()
        envs.post_reset([0], [START])
        envs.wait([0])
        envs.post_step([0], order(RAISE))
        with pytest.raises(UserError, match="max_restarts") as error:
            envs.wait([0])
        assert "the gearbox is full of sand" in str(error.value)


def test_a_worker_that_was_only_slow_gets_more_time(caplog: pytest.LogCaptureFixture):
    """Otherwise it would meet the same limit again and again on a busy machine, until the run ends."""
    envs = started(replace(CONFIG, num_envs=1, num_workers=1, start_timeout=200.0))
    with envs:
        with_timeout(envs, 0.1)
        for allowed in (0.2, 0.4):
            envs.post_step([0], order(HANG))
            with caplog.at_level(logging.WARNING):
                assert envs.wait([0]).lost.all()
            assert f"{allowed:g} seconds are allowed from now on" in caplog.records[-1].getMessage()
            assert "raise env.step_timeout" in caplog.records[-1].getMessage()
            envs.post_reset([0], [START])
            envs.wait([0])
        with_timeout(envs, 100.0)
        assert envs._step_timeout() == 200.0  # never more than starting may take


def test_a_crash_is_no_reason_for_more_time():
    envs = started()
    with envs:
        envs.post_step([0], order(RAISE))
        assert envs.wait([0]).lost.all()
        assert envs._step_timeout() == CONFIG.step_timeout


def test_a_worker_that_does_not_start_in_time_says_what_to_raise():
    with pytest.raises(
        UserError, match=r"no answer for 1e-09 seconds while it .*env\.start_timeout"
    ):
        ProcessVectorEnv(replace(CONFIG, start_timeout=1e-9), make_faulty_envs)


def test_a_users_mistake_in_a_worker_is_not_retried():
    envs = started()
    with envs:
        envs.post_step([0], order(USER_ERROR))
        with pytest.raises(UserError, match="please install the gearbox"):
            envs.wait([0])
        assert envs.infrastructure_errors == 0


def test_start_up_failures_are_user_errors():
    with pytest.raises(UserError, match=r"pip install 'vla-rl\[metaworld\]'"):
        ProcessVectorEnv(CONFIG, make_uninstalled_envs)
    with pytest.raises(UserError, match="no licence for the gearbox"):
        ProcessVectorEnv(CONFIG, make_unstartable_envs)
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        ProcessVectorEnv(CONFIG, lambda config, count: [])
    assert worker_children() == []


def test_snapshots_travel_between_workers():
    envs = started()
    with envs:
        envs.post_step([0], MOVE)
        seen = envs.wait([0]).observation
        state = envs.snapshot([0])
        shown = envs.restore([1, 3], state * 2)
        np.testing.assert_array_equal(shown.images, np.repeat(seen.images, 2, axis=0))
        np.testing.assert_array_equal(shown.time_fraction, np.repeat(seen.time_fraction, 2))
        envs.post_step([0, 1, 3], order(0.0, 3))
        after = envs.wait([0, 1, 3]).observation
        assert len({image.tobytes() for image in after.images}) == 1
        envs.post_step([2], MOVE)
        with pytest.raises(RuntimeError, match="no episode at rest"):
            envs.snapshot([2])


def test_restore_does_not_disturb_work_outstanding_in_the_same_worker():
    envs = started()
    with envs:
        state = envs.snapshot([2])
        envs.post_step([0], MOVE)
        envs.restore([4], state)
        result = envs.wait([0])
        assert result.simulator_steps.tolist() == [1]
        assert not result.lost.any()


def test_closing_leaves_nothing_behind():
    envs = started()
    pids = envs.worker_pids()
    descriptors = len(os.listdir("/proc/self/fd"))
    assert envs.memory_bytes() > 10e6
    envs.close()
    envs.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert len(os.listdir("/proc/self/fd")) < descriptors
    assert worker_children() == []


def worker_children() -> list[int]:
    """Processes that have come since the test began."""
    found = {child.pid for child in psutil.Process().children(recursive=True)}
    return sorted(found - BEFORE)


def test_workers_are_small_and_use_one_thread():
    with ProcessVectorEnv(CONFIG, make_bandit_envs) as envs:
        for pid in envs.worker_pids():
            process = psutil.Process(pid)
            environment = process.environ()
            assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "1"
            assert environment["LP_NUM_THREADS"] == "0"
            libraries = Path(f"/proc/{pid}/maps").read_text()
            assert "libtorch" not in libraries
        assert envs.memory_bytes() < 2 * 80e6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_a_command_is_the_parents_alone(number: signal.Signals):
    """Slurm, systemd and `docker stop` send SIGTERM to all processes: the iteration's episodes must not be lost."""
    envs = started()
    with envs:
        for pid in envs.worker_pids():
            os.kill(pid, number)
        envs.post_step(range(5), order(0.0, 5))
        assert not envs.wait(range(5)).lost.any()


@pytest.mark.parametrize(
    ("drawing", "chosen", "expected"),
    [([3, 1, 3], None, ["3", "1", "3"]), ([], None, [None] * 3), ([0, 1, 0], "5", ["5"] * 3)],
)
def test_workers_draw_on_the_gpus_in_turn(monkeypatch, drawing, chosen, expected):
    monkeypatch.setattr("vla_rl.envs.vector.process.worker_devices", lambda *_: drawing)
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    if chosen is not None:
        monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", chosen)
    with ProcessVectorEnv(replace(CONFIG, num_workers=3), make_faulty_envs) as envs:
        devices = [
            psutil.Process(worker.pid).environ().get("MUJOCO_EGL_DEVICE_ID")
            for worker in envs._workers
        ]
    assert devices == expected


def test_output_of_an_environment_does_not_disturb_the_pipe():
    envs = started()
    with envs:
        envs.post_step([0], order(PRINT))
        assert not envs.wait([0]).lost.any()


@pytest.mark.parametrize("busy", [False, True])
def test_no_orphans_when_the_parent_is_killed(tmp_path: Path, busy: bool):
    """kill -9 of the parent, with idle workers and with one that hangs for ever."""
    script = tmp_path / "parent.py"
    # no `if __name__ == "__main__"`: workers do not run the user's script again
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, time
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from dataclasses import replace
            from test_vector import CONFIG, START, HANG, make_faulty_envs, order
            from vla_rl.envs.vector.process import ProcessVectorEnv
            envs = ProcessVectorEnv(CONFIG, make_faulty_envs)
            envs.post_reset([0], [START]); envs.wait([0])
            if {busy}:
                envs.post_step([0], order(HANG))
            print(*envs.worker_pids(), flush=True)
            time.sleep(3600)
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    try:
        while not all(map(has_ended, processes)):  # for ever, if they are orphans
            time.sleep(0.05)
    finally:
        for process in processes:
            if not has_ended(process):
                process.kill()


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
