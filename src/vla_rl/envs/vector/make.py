"""Many environments side by side: in processes of their own, or one after another where that is faster.

with make_vector_env(EnvConfig(suite="mt5", num_envs=16)) as envs:
    ...
"""

from __future__ import annotations

import logging
from dataclasses import replace

from vla_rl.config.env import EnvConfig
from vla_rl.envs.registry import as_played, playable, suites_of
from vla_rl.envs.suites import is_union
from vla_rl.envs.vector.process import ProcessVectorEnv
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.envs.vector.worker import MakeEnvs

LOG = logging.getLogger(__name__)


def make_vector_env(
    config: EnvConfig, local_rank: int = 0, local_size: int = 1
) -> ProcessVectorEnv | SerialVectorEnv:
    """`config.num_envs` environments of `config.suite`; the `VectorEnv` protocol, and a context manager.

    A benchmark whose environments cost less than the way to another process plays in this one, unless `num_workers`
    asks for processes. local_rank, local_size: this process among those of the machine that have environments; they
    share its GPUs for drawing. ConfigError for a suite that there is not, UserError where its simulator is missing.
    """
    played = playable(config)
    if local_rank == 0:
        _say_common_horizon(config)
    return open_vector_env(
        as_played(config), played.make_envs, played.in_process, local_rank, local_size
    )


def _say_common_horizon(config: EnvConfig) -> None:
    """A union whose suites are all cut after the same number of turns: that may be a preset's for another suite."""
    if not (is_union(config.suite) and config.horizon):
        return
    own = suites_of(replace(config, horizon=0))
    if {settings.horizon for settings in own.values()} != {config.horizon}:
        words = ", ".join(f"{name} {settings.horizon}" for name, settings in own.items())
        LOG.warning(
            "env.horizon %d is for all suites of %s; their own would be %s turns (env.horizon 0)",
            config.horizon, config.suite, words,
        )  # fmt: skip


def open_vector_env(
    config: EnvConfig,
    make_envs: MakeEnvs,
    in_process: bool,
    local_rank: int = 0,
    local_size: int = 1,
) -> ProcessVectorEnv | SerialVectorEnv:
    """The same for a simulator that need not be known here by its name."""
    if in_process and config.num_workers == 0:
        return SerialVectorEnv(config, make_envs)
    return ProcessVectorEnv(config, make_envs, local_rank, local_size)
