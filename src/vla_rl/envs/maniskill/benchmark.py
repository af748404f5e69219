"""ManiSkill3 as a benchmark.

protocol   ManiSkill's: its 128 px camera, one action a control step, as many steps as it registers the task with
laptop     for a small policy: 64 px, turns of two actions held for two control steps each
"""

from __future__ import annotations

from dataclasses import replace

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import UserError
from vla_rl.envs.benchmark import Benchmark, EvalDefaults, Expert, Installation, RobotLayout
from vla_rl.envs.maniskill.env import ManiSkillEnv, make_maniskill_envs
from vla_rl.envs.maniskill.package import HOW_TO_DRAW
from vla_rl.envs.maniskill.simulator import VIDEO_CAMERA
from vla_rl.envs.maniskill.tasks import SUITE, TASKS, longest_episode, suite_tasks, task_of

_RATE = 20  # control steps a second
_LAPTOP_TURN = 2, 2  # actions a turn, control steps for which each is held
_TIMEOUT = 300.0  # s; drawing on busy CPU cores may take seconds an image


def _protocol_env(suite: str) -> EnvConfig:
    return EnvConfig(
        suite=suite,
        image_size=128,
        action_repeat=1,
        action_chunk=1,
        horizon=longest_episode(suite),
        num_envs=8,
        step_timeout=_TIMEOUT,
    )


def _laptop_env(suite: str) -> EnvConfig:
    """As many control steps as the protocol, decided in chunks."""
    chunk, repeat = _LAPTOP_TURN
    return EnvConfig(
        suite=suite,
        action_chunk=chunk,
        action_repeat=repeat,
        horizon=-(-longest_episode(suite) // (chunk * repeat)),
        num_envs=8,
        step_timeout=_TIMEOUT,
    )


def _no_expert(env: ManiSkillEnv) -> Expert:
    """UserError, as ManiSkill's planners are not used here."""
    del env
    raise UserError(
        "ManiSkill's suites have no expert here, so nobody plays demonstrations: practise from random weights "
        "(`vla-rl train toy --env.suite maniskill:<task> --reward.kind simulator`), or bring demonstrations as a "
        "LeRobotDataset (docs/maniskill.md)"
    )


MANISKILL = Benchmark(
    title="ManiSkill",
    suites=(SUITE,),
    suites_in_words=f"{SUITE}:<task ids, with commas>",
    task_names=suite_tasks,
    instructions=lambda suite: tuple(TASKS[task].instruction for task in suite_tasks(suite)),
    make_envs=make_maniskill_envs,
    make_video_env=lambda config: ManiSkillEnv(replace(config, camera=VIDEO_CAMERA)),
    make_expert=_no_expert,
    robot="maniskill_panda",
    action_dim=ManiSkillEnv.action_dim,
    proprio_dim=ManiSkillEnv.proprio_dim,
    noise_scale=(1.0,) * 6 + (0.0,),
    robot_layout=RobotLayout(
        position=(0, 1, 2),
        opening=((10, 1.0), (11, 1.0)),  # the two fingers
        stroke=0.08,
        speed=0.1 * _RATE,  # as commanded; the arm lags behind its targets
    ),
    simulator_rate=_RATE,
    frame_every=1,
    env_defaults=_protocol_env,
    laptop_defaults=_laptop_env,
    eval_defaults=EvalDefaults(split="held-out", episodes_per_task=30),
    horizon=longest_episode,
    dense_reward_max=1.0,
    ignores=("mesh_faces", "effects", "settle_steps"),
    task_of_instruction=task_of,
    installation=Installation(
        module="mani_skill",
        packages=("mani-skill", "sapien"),
        extra="maniskill",
        probe="from vla_rl.envs.maniskill.package import probe; probe()",
        mend=f"where it does not load: make setup-maniskill; where it cannot draw: {HOW_TO_DRAW}",
    ),
)
