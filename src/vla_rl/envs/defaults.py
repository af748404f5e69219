"""How a benchmark is played when nobody says otherwise.

    Meta-World   ours: 64 px, chunks of two actions held for five steps each, 15 turns, 30 held-out states a task
    LIBERO       OpenVLA's: 256 px, one action a turn, 220/280/300/520/400 steps after 10 of settling, all 50 initial
                 states a task, whole meshes; its images, gripper and action statistics for its own checkpoints
    laptop       LIBERO for a small policy: 64 px, light meshes, chunks of held actions, 20 initial states held out

Everything can be set otherwise, and whatever was used is written into each result.
"""

from __future__ import annotations

from dataclasses import replace

from vla_rl.config import Conventions, EnvConfig, EvalConfig, UserError
from vla_rl.config.env import LIBERO_STATES
from vla_rl.envs.libero.tasks import protocol_horizon
from vla_rl.envs.registry import benchmark, is_libero

_HELD_OUT = 10  # of LIBERO's stored states, for runs that keep some apart
_METAWORLD_EPISODES = 30
_LAPTOP_TURN = 2, 4  # actions a turn, control steps for which each is held
_LAPTOP_HELD_OUT = 20
_LAPTOP_FACES = 300


def benchmark_env(suite: str) -> EnvConfig:
    """The environment of a suite's protocol. LIBERO: OpenVLA's evaluation, openvla/openvla@c8f03f4."""
    if not is_libero(suite):
        return EnvConfig(suite=suite)
    return EnvConfig(
        suite=suite,
        image_size=256,
        action_repeat=1,
        action_chunk=1,
        horizon=protocol_horizon(suite),
        num_envs=10,
        initial_states=LIBERO_STATES,
        held_out=_HELD_OUT,
        mesh_faces=0,
        step_timeout=300.0,
    )


def laptop_env(suite: str) -> EnvConfig:
    """The environment in which a small policy practises `suite` on a laptop.

    LIBERO: as many steps as the protocol's horizon has, decided in chunks.
    """
    if not is_libero(suite):
        return EnvConfig(suite=suite)
    chunk, repeat = _LAPTOP_TURN
    return EnvConfig(
        suite=suite,
        action_chunk=chunk,
        action_repeat=repeat,
        horizon=-(-protocol_horizon(suite) // (chunk * repeat)),
        initial_states=LIBERO_STATES,
        held_out=_LAPTOP_HELD_OUT,
        mesh_faces=_LAPTOP_FACES,
        step_timeout=300.0,  # the first reset builds a simulator per task, and light meshes the first time of all
    )


def evaluation_env(
    suite: str, trained_in: EnvConfig | None, image_size: int, resizes: bool, action_chunk: int
) -> EnvConfig:
    """Where a policy is evaluated: as it was trained if on the same benchmark, else by the protocol.

    `image_size` is the model's; frames come in it unless the policy `resizes` them itself. On another LIBERO suite than
    the one trained on, the horizon is that suite's, in turns; so many simulator steps stay when the chunk changes.
    """
    suite = suite or (trained_in.suite if trained_in is not None else EnvConfig().suite)
    env = benchmark_env(suite)
    if trained_in is not None and is_libero(trained_in.suite) == is_libero(suite):
        env = replace(trained_in, suite=suite)
        steps_a_turn = action_chunk * env.action_repeat
        steps = env.horizon * env.action_chunk * env.action_repeat
        if is_libero(suite) and suite != trained_in.suite:
            steps = protocol_horizon(suite)
        env = replace(env, horizon=-(-steps // steps_a_turn))
    size = env.image_size if resizes else image_size
    return replace(env, image_size=size, action_chunk=action_chunk)


def evaluation_protocol(config: EvalConfig, env: EnvConfig) -> EvalConfig:
    """`config` with what it leaves open filled in: the split, and how many of its initial states."""
    libero = is_libero(env.suite)
    split = config.split
    if split == "auto":
        split = "all" if libero else "held-out"
    episodes = config.episodes_per_task
    if episodes is None:
        held_out, total = env.held_out, env.initial_states
        states = {"held-out": held_out, "train": total - held_out, "all": total}[split]
        episodes = states if libero else min(states, _METAWORLD_EPISODES)
    return replace(config, split=split, episodes_per_task=episodes)


def require_same_robot(action_dim: int, suite: str) -> None:
    """UserError unless a policy that decides `action_dim` numbers an action can play `suite`."""
    played = benchmark(suite)
    if action_dim != played.action_dim:
        raise UserError(
            f"the policy decides {action_dim} numbers an action, but {suite} ({played.title}) is played with "
            f"{played.action_dim}: choose a suite of the robot it was trained on, or another policy"
        )


def conventions(suite: str) -> Conventions:
    """What the published checkpoints for `suite` mean by images, gripper and actions, which they do not say.

    LIBERO: OpenVLA's. The statistics are those of the suite.
    """
    if not is_libero(suite):
        return Conventions()
    base = "_".join(suite.partition(":")[0].split("-")[:2])
    return Conventions(images="openvla-libero", gripper="openvla", unnorm_key=base)
