"""Meta-World as a benchmark."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from vla_rl.config.env import EnvConfig
from vla_rl.envs.benchmark import Benchmark, EvalDefaults, Installation, RobotLayout
from vla_rl.envs.metaworld import tasks as metaworld_tasks
from vla_rl.envs.metaworld.env import MetaWorldEnv, expert_action, make_metaworld_envs


class _MetaWorldExpert:
    """Meta-World's scripted policies. They never stop by themselves."""

    done = False

    def __init__(self, env: MetaWorldEnv) -> None:
        self._env = env

    def action(self) -> Float32[np.ndarray, " 4"]:
        return expert_action(self._env)


_BY_INSTRUCTION = {text: task for task, text in metaworld_tasks.INSTRUCTIONS.items()}


def _env(suite: str) -> EnvConfig:
    """Ours: 64 px, chunks of two actions held for five steps each, 15 turns: the defaults of `EnvConfig`."""
    return EnvConfig(suite=suite)


def _laptop(suite: str) -> EnvConfig:
    """The goal of the hard tasks is a sphere of one or two pixels at 64 px, and their experts need up to 14 turns."""
    env = _env(suite)
    return replace(env, image_size=96, horizon=20) if suite == "mt10-hard" else env


def _instructions(suite: str) -> tuple[str, ...]:
    tasks = metaworld_tasks.suite_tasks(suite)
    return tuple(metaworld_tasks.INSTRUCTIONS[task] for task in tasks)


METAWORLD = Benchmark(
    title="Meta-World",
    suites=(*metaworld_tasks.SUITES, "mt1"),
    suites_in_words="mt1:<task>, mt5, mt10, mt10-hard or mt50",
    task_names=metaworld_tasks.suite_tasks,
    instructions=_instructions,
    make_envs=make_metaworld_envs,
    make_video_env=lambda config: MetaWorldEnv(replace(config, mesh_faces=0), pretty=True),
    make_expert=_MetaWorldExpert,
    robot="metaworld_sawyer",
    action_dim=MetaWorldEnv.action_dim,
    proprio_dim=MetaWorldEnv.proprio_dim,
    noise_scale=(1.0, 1.0, 1.0, 1.0),
    robot_layout=RobotLayout(
        position=(0, 1, 2),
        opening=((3, 1.0),),  # 0 closed .. 1 open
        stroke=1.0,
        speed=0.8,  # an action of 1 moves the hand's target by 1 cm in each of 80 simulator steps a second
    ),
    simulator_rate=80,  # 5 physics steps of 2.5 ms each
    frame_every=2,
    env_defaults=_env,
    laptop_defaults=_laptop,
    eval_defaults=EvalDefaults(split="held-out", episodes_per_task=30),
    dense_reward_max=10.0,
    ignores=("settle_steps",),
    task_of_instruction=lambda text: _BY_INSTRUCTION.get(text, text),
    installation=Installation(
        module="metaworld",
        packages=("metaworld", "mujoco"),
        extra="metaworld",
        probe="import metaworld; print(len(metaworld.ALL_V3_ENVIRONMENTS), 'tasks')",
        optional=False,
    ),
)
