"""Episodes a tiny reward model learns in seconds: a success lights up in its task's colour, a failure stays dark."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vla_rl.rewards.trajectories import Trajectory

TASKS = {"red-task": "light the red lamp", "green-task": "light the green lamp"}


def trajectory(
    number: int,
    success: bool,
    task: str = "red-task",
    length: int = 6,
    size: int = 32,
    chunk: int = 1,
) -> Trajectory:
    rng = np.random.default_rng(number)
    images = rng.integers(0, 40, (length, size, size, 3), dtype=np.uint8)
    light = np.linspace(0, 200, length) if success else np.zeros(length)
    images[..., list(TASKS).index(task)] += light.astype(np.uint8)[:, None, None]
    return Trajectory(
        images=images,
        proprio=rng.random((length, 4)).astype(np.float32),
        actions=rng.uniform(-1, 1, (length, chunk, 4)).astype(np.float32),
        instruction=TASKS[task],
        task=TASKS[task],  # as a dataset without our details reads it
        initial_state=number,
        success=success,
        source="policy",
        robot="toy",
    )


def episodes(per_task: int = 8, **shape: int) -> list[Trajectory]:
    """Half of each task's are successes; no two begin alike."""
    return [
        trajectory(100 * place + i, i % 2 == 0, task, **shape)
        for place, task in enumerate(TASKS)
        for i in range(per_task)
    ]


def renumbered(trajectories: list[Trajectory], state: int) -> list[Trajectory]:
    return [replace(t, initial_state=state) for t in trajectories]
