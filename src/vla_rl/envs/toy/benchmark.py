"""The toy world as a benchmark."""

from __future__ import annotations

from vla_rl.envs.benchmark import Benchmark
from vla_rl.envs.toy.env import ToyEnv, ToyExpert, make_toy_envs
from vla_rl.envs.toy.tasks import suite_tasks

TOY = Benchmark(
    title="Toy",
    robot="toy_hand",
    simulator_rate=20,
    frame_every=1,
    action_dim=ToyEnv.action_dim,
    proprio_dim=ToyEnv.proprio_dim,
    noise_scale=(1.0, 1.0, 1.0, 0.0),
    task_names=suite_tasks,
    make_envs=make_toy_envs,
    make_video_env=ToyEnv,
    make_expert=ToyExpert,
)
