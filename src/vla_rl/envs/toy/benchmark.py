"""The toy world as a benchmark."""

from __future__ import annotations

from dataclasses import replace

from vla_rl.config.env import EnvConfig
from vla_rl.envs.benchmark import Benchmark, EvalDefaults, RobotLayout
from vla_rl.envs.toy.env import ToyEnv, ToyExpert, make_toy_envs
from vla_rl.envs.toy.tasks import INSTRUCTIONS, SUITE, suite_tasks
from vla_rl.envs.toy.world import STEP

_RATE = 20
_BY_INSTRUCTION = {text: task for task, text in INSTRUCTIONS.items()}


def _env(suite: str) -> EnvConfig:
    """Small images, short episodes: all that a policy of a few hundred thousand weights needs."""
    return EnvConfig(
        suite=suite, image_size=32, action_repeat=20, action_chunk=1, horizon=5, num_envs=64
    )


TOY = Benchmark(
    title="Toy",
    suites=(SUITE,),
    suites_in_words=f"{SUITE} or {SUITE}:<tasks>",
    task_names=suite_tasks,
    instructions=lambda suite: tuple(INSTRUCTIONS[task] for task in suite_tasks(suite)),
    make_envs=make_toy_envs,
    make_video_env=lambda config: ToyEnv(replace(config, camera="table")),
    make_expert=ToyExpert,
    robot="toy_hand",
    action_dim=ToyEnv.action_dim,
    proprio_dim=ToyEnv.proprio_dim,
    noise_scale=(1.0, 1.0, 1.0, 0.0),
    robot_layout=RobotLayout(
        position=(0, 1, 2), opening=((3, 1.0),), stroke=1.0, speed=STEP * _RATE
    ),
    simulator_rate=_RATE,
    frame_every=1,
    env_defaults=_env,
    laptop_defaults=_env,
    eval_defaults=EvalDefaults(split="held-out", episodes_per_task=30),
    dense_reward_max=1.0,
    in_process=True,
    ignores=("mesh_faces", "effects", "settle_steps"),
    task_of_instruction=lambda text: _BY_INSTRUCTION.get(text, text),
)
