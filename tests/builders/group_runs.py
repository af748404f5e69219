"""Practice in groups without a recipe: a policy without a critic, an environment whose answer is known, a learner."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from builders.policies import narrow_policy
from vla_rl.config import CriticConfig, CurriculumConfig, EnvConfig
from vla_rl.curriculum import TaskSampler
from vla_rl.distributed.shards import Shards
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.envs.known_answers import BanditEnv, ChainEnv
from vla_rl.envs.vector.serial import SerialVectorEnv
from vla_rl.rollout import Collector, GroupPlay, PlayedGroups
from vla_rl.rollout.engine import OwnPolicy

NO_CRITIC = CriticConfig(kind="none")
_ONE_AT_A_TIME = threading.Lock()
"""torch's generator is that of all threads."""


class GroupRun:
    """Plays groups in a known-answer environment; the same on any number of ranks."""

    def __init__(
        self,
        env_class: type = BanditEnv,
        horizon: int = 1,
        *,
        num_envs: int = 8,
        world: World = SingleProcess(),
        policy: Any = None,
        group: int = 4,
        groups: int = 4,
        extra: int = 0,
        seed: int = 0,
    ) -> None:
        instructions = [*BanditEnv.instructions, *ChainEnv.instructions]
        with _ONE_AT_A_TIME:
            self.policy = policy or narrow_policy(instructions, NO_CRITIC, seed)
        self.shards = Shards.of(num_envs, 4, world)
        own = EnvConfig(
            num_envs=len(self.shards.own_envs), horizon=horizon, image_size=32, action_chunk=1
        )
        self.envs = SerialVectorEnv(
            own, lambda config, count: [env_class(config) for _ in range(count)]
        )
        states = np.arange(10, dtype=np.int64)
        self.curriculum = TaskSampler(CurriculumConfig(), self.envs.tasks, states, seed)
        engine = OwnPolicy(self.policy)
        self.collector = Collector(
            engine, self.envs, self.curriculum.draw_one, seed, shards=self.shards
        )
        self.groups = GroupPlay(
            self.collector, engine, self.policy, self.curriculum.draw_group, group, groups, extra, world
        )  # fmt: skip

    def play(self, iteration: int = 0) -> PlayedGroups:
        played = self.groups.play(1.0, iteration)
        self.curriculum.end_window(played.collected.outcomes)
        return played

    def success_of(self, played: PlayedGroups) -> float:
        return float(np.mean([episode.success for episode in played.collected.finished]))


def no_dense(played: PlayedGroups) -> np.ndarray:
    return np.zeros_like(played.collected.rollout.rewards)
