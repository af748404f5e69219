"""LIBERO as a benchmark."""

from __future__ import annotations

from dataclasses import replace

from vla_rl.envs.benchmark import Benchmark
from vla_rl.envs.libero import tasks as libero_tasks
from vla_rl.envs.libero.env import LiberoEnv, make_libero_envs
from vla_rl.envs.libero.expert.expert import NOISE_SCALE, LiberoExpert

LIBERO = Benchmark(
    title="LIBERO",
    robot="libero_panda",
    simulator_rate=20,
    frame_every=1,
    action_dim=LiberoEnv.action_dim,
    proprio_dim=LiberoEnv.proprio_dim,
    noise_scale=NOISE_SCALE,
    task_names=lambda suite: tuple(task.name for task in libero_tasks.suite_tasks(suite)),
    make_envs=make_libero_envs,
    make_video_env=lambda config: LiberoEnv(replace(config, mesh_faces=0)),
    make_expert=LiberoExpert,
)
