"""Windows of short episodes of two tasks whose outcomes are given, and a learner for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from builders.policies import narrow_policy
from builders.rollouts import window
from vla_rl.algorithms.advantages import Batch, compute_advantages
from vla_rl.algorithms.ppo import PPO
from vla_rl.config import CriticConfig, OptimizerConfig, PPOConfig
from vla_rl.policies import OpenVLAPolicy
from vla_rl.types import Rollout

WORDS = ("open it", "close it")
OPEN, CLOSE = 0, 1
TURNS = 3
SEPARATE = CriticConfig(kind="separate", time_fraction=True)
SHARED = CriticConfig(kind="shared", time_fraction=False)
FAST = PPOConfig(minibatch=8, epochs=2, critic_warmup=0)


def episodes(tasks: list[int], won: list[int], seed: int = 0, **changes: Any) -> Rollout:
    """A window in which every environment plays one episode of a task to its end, and wins or loses it."""
    count, task_ids = len(tasks), np.tile(tasks, (TURNS, 1))
    last, wins = np.zeros((TURNS, count), bool), np.array(won, bool)
    last[-1] = True
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {
        "tasks": ("open", "close"),
        "instructions": WORDS,
        "task_ids": task_ids,
        "episode_ids": np.tile(seed * count + np.arange(count), (TURNS, 1)),
        "images": rng.integers(0, 256, (TURNS, count, 32, 32, 3), dtype=np.uint8),
        "next_images": np.zeros((count, 32, 32, 3), np.uint8),
        "time_fraction": rng.random((TURNS, count), dtype=np.float32),
        "rewards": (last & wins).astype(np.float32),
        "terminated": last & wins,
        "truncated": last & ~wins,
        "succeeded": np.tile(wins, (TURNS, 1)),
    }
    return window(TURNS, count, **(arrays | changes))


def played(policy: OpenVLAPolicy, rollout: Rollout) -> Rollout:
    """The same with the policy's own tokens, their log-probs, and values of a critic that knows nothing."""
    shape = rollout.valid.shape
    rng = np.random.default_rng(1)
    said = policy.act(
        rollout.flat_observation(), 1.0, rng.random((shape[0] * shape[1], 4), np.float32)
    )
    return replace(
        rollout,
        tokens=said.tokens.numpy().reshape(*shape, 4),
        log_probs=said.log_probs.numpy().reshape(*shape, 4),
        values=rng.normal(0, 0.3, shape).astype(np.float32),
    )  # fmt: skip


def credit(rollout: Rollout, config: PPOConfig, dense: float = 0.0) -> Batch:
    return compute_advantages(rollout, np.full_like(rollout.rewards, dense), config)


def learner(config: PPOConfig, critic: CriticConfig = SEPARATE) -> tuple[PPO, OpenVLAPolicy]:
    policy = narrow_policy(WORDS, critic)
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
    return PPO(policy, config, optimizer, critic, seed=0), policy
