"""Meta-World as a benchmark."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from vla_rl.envs.benchmark import Benchmark
from vla_rl.envs.metaworld import tasks as metaworld_tasks
from vla_rl.envs.metaworld.env import MetaWorldEnv, expert_action, make_metaworld_envs


class _MetaWorldExpert:
    """Meta-World's scripted policies. They never stop by themselves."""

    done = False

    def __init__(self, env: MetaWorldEnv) -> None:
        self._env = env

    def action(self) -> Float32[np.ndarray, " 4"]:
        return expert_action(self._env)


METAWORLD = Benchmark(
    title="Meta-World",
    robot="metaworld_sawyer",
    simulator_rate=80,  # 5 physics steps of 2.5 ms each
    frame_every=2,
    action_dim=MetaWorldEnv.action_dim,
    proprio_dim=MetaWorldEnv.proprio_dim,
    noise_scale=(1.0, 1.0, 1.0, 1.0),
    task_names=metaworld_tasks.suite_tasks,
    make_envs=make_metaworld_envs,
    make_video_env=lambda config: MetaWorldEnv(replace(config, mesh_faces=0), pretty=True),
    make_expert=_MetaWorldExpert,
)
