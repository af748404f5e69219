"""What the benchmarks measured, as files for `vla-rl plan --costs`."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vla_rl.config import EnvConfig
from vla_rl.envs.registry import BENCHMARKS, benchmark
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.planning.calibration import fitted
from vla_rl.planning.costs import (
    FORMAT,
    Costs,
    Line,
    LinkCosts,
    PolicyCosts,
    SimulatorCosts,
    to_json,
)
from vla_rl.runtime.call_times import CallTimes
from vla_rl.runtime.cpus import available_cpus
from vla_rl.runtime.files import write_json
from vla_rl.types import EpisodeSpec


def simulator_costs(config: EnvConfig, seconds: float) -> SimulatorCosts:
    """Random play of a suite in this process, for so many seconds, after every task has been built."""
    played = benchmark(config.suite)
    rng = np.random.default_rng(0)
    every = range(config.num_envs)
    with SerialVectorEnv(config, played.make_envs) as envs:
        for task in envs.tasks:
            envs.post_reset(every, [EpisodeSpec(task, slot) for slot in every])
            envs.wait(every)
        envs.work_times()
        ended, started, resets = list(every), time.monotonic(), 0
        while resets < config.num_envs * 3 or time.monotonic() - started < seconds:
            specs = []
            for _ in ended:
                task = envs.tasks[resets % len(envs.tasks)]
                specs.append(EpisodeSpec(task, int(rng.integers(config.initial_states))))
                resets += 1
            envs.post_reset(ended, specs)
            envs.wait(ended)
            for _ in range(min(10, config.horizon)):
                shape = (config.num_envs, config.action_chunk, envs.action_dim)
                envs.post_step(every, rng.uniform(-1, 1, shape).astype(np.float32))
                result = envs.wait(every)
                if (result.terminated | result.truncated).any():
                    break
            ended = list(every)
        times = envs.work_times()
        held = envs.memory_bytes()
    return SimulatorCosts(
        benchmark=next(name for name, known in BENCHMARKS.items() if known is played),
        image_size=config.image_size,
        mesh_faces=config.mesh_faces,
        step=times["step"].seconds / times["step"].samples,
        image=times["image"].seconds / times["image"].calls,
        reset=times["reset"].seconds / times["reset"].calls,
        source="measured",
        worker_bytes=float(held),
        note=f"{config.suite}, random actions",
    )


def policy_costs(result: dict[str, Any]) -> list[PolicyCosts]:
    """What `gpu_openvla.run` gave, with and without activation checkpointing of the learner."""
    acting = [row for row in result["act_adapters"] if row["fits"]]
    found = []
    for name, checkpointing in (("learn", False), ("learn_checkpointing", True)):
        learning = [row for row in result[name] if row["fits"]]
        if not acting or not learning:
            continue
        token = _line(acting, "loop_seconds").times(1 / max(1, result["action_tokens"] - 1))
        found.append(
            PolicyCosts(
                model=result["model"],
                device="cpu" if result["device"] == "CPU" else "gpu",
                image_size=result["image_size"],
                tokens=result["action_tokens"],
                prefill=_line(acting, "prefill_seconds"),
                token=token,
                learn=_line(learning, "seconds"),
                source="measured",
                adapters=True,
                checkpointing=checkpointing,
                note=f"random weights, torch {result['torch']}",
            )
        )
    return found


def _line(rows: Iterable[dict[str, Any]], key: str) -> Line:
    calls = CallTimes()
    for row in rows:
        calls.add(row["batch"], row[key])
    return fitted(calls)


def write_costs(
    path: Path,
    machine: str = "",
    simulators: Iterable[SimulatorCosts] = (),
    policies: Iterable[PolicyCosts] = (),
    links: Iterable[LinkCosts] = (),
) -> None:
    """A costs file of what was measured here today."""
    here = f"{available_cpus()} cores, {platform.machine()}"
    costs = Costs(
        format=FORMAT,
        machine=machine or here,
        date=datetime.date.today().isoformat(),
        simulators=tuple(simulators),
        policies=tuple(policies),
        links=tuple(links),
    )
    write_json(path, to_json(costs))
