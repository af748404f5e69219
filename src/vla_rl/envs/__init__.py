"""Simulators: one environment (`Env`), many side by side (`VectorEnv`), Meta-World, and known-answer toys.

Importing this imports neither torch nor a simulator.
"""

from vla_rl.envs.metaworld import MetaWorldEnv, expert_action, make_metaworld_envs
from vla_rl.envs.metaworld_tasks import INSTRUCTIONS, suite_tasks
from vla_rl.envs.protocol import (
    DenselyRewarded,
    Env,
    EpisodesLostError,
    Snapshot,
    VectorEnv,
    split_initial_states,
)
from vla_rl.envs.serial import SerialVectorEnv
from vla_rl.envs.vector import ProcessVectorEnv

__all__ = [
    "INSTRUCTIONS",
    "DenselyRewarded",
    "Env",
    "EpisodesLostError",
    "MetaWorldEnv",
    "ProcessVectorEnv",
    "SerialVectorEnv",
    "Snapshot",
    "VectorEnv",
    "expert_action",
    "make_metaworld_envs",
    "split_initial_states",
    "suite_tasks",
]
