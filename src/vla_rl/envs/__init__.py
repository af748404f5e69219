"""Simulators: one environment (`Env`), many side by side (`VectorEnv`), what the benchmarks are, and known-answer toys.

Importing this imports neither torch nor a simulator.
"""

from vla_rl.envs.env import (
    DenselyRewarded,
    Env,
    EpisodesLostError,
    Snapshot,
    VectorEnv,
    split_initial_states,
)
from vla_rl.envs.metaworld.env import MetaWorldEnv, expert_action, make_metaworld_envs
from vla_rl.envs.metaworld.tasks import INSTRUCTIONS, suite_tasks
from vla_rl.envs.vector.make import make_vector_env
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.envs.vector.serial import SerialVectorEnv

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
    "make_vector_env",
    "split_initial_states",
    "suite_tasks",
]
