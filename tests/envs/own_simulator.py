"""A simulator as somebody else would add it: a module of theirs, and one entry in `BENCHMARKS`."""

from __future__ import annotations

from dataclasses import replace

from vla_rl.config import Conventions, EnvConfig
from vla_rl.envs.benchmark import EvalDefaults, Installation
from vla_rl.envs.known_answers import ChainEnv
from vla_rl.envs.toy.benchmark import TOY


class OwnEnv(ChainEnv):
    """A corridor, played by another robot."""

    proprio_dim = 4


def make_own_envs(config: EnvConfig, count: int) -> list[OwnEnv]:
    return [OwnEnv(config) for _ in range(count)]


OWN = replace(
    TOY,
    title="Own",
    suites=("own", "own-long"),
    suites_in_words="own or own-long",
    task_names=lambda suite: OwnEnv.tasks,
    instructions=lambda suite: OwnEnv.instructions,
    make_envs=make_own_envs,
    robot="own_robot",
    env_defaults=lambda suite: EnvConfig(
        suite=suite, image_size=16, horizon=7, initial_states=12, held_out=2
    ),
    eval_defaults=EvalDefaults(split="train", episodes_per_task=None),
    horizon=lambda suite: 40 if suite == "own-long" else 20,
    dense_reward_max=None,
    stored_states=12,
    in_process=False,
    conventions=lambda suite: Conventions(unnorm_key="own"),
    installation=Installation("own_package", ("own-distribution",), "own", "print('works')"),
)
