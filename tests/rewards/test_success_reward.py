"""Without a dense reward there is none."""

import numpy as np
import pytest

from vla_rl.rewards import RewardFunction, SuccessReward
from vla_rl.types import Rollout


def test_success_reward_adds_nothing(rollout):
    model: RewardFunction = SuccessReward()
    dense = model.score(rollout)
    assert dense.shape == rollout.rewards.shape
    assert dense.dtype == np.float32
    assert not dense.any()


@pytest.fixture
def rollout():
    turns, envs, tokens = 3, 2, 8
    shape = (turns, envs)
    numbers = np.ones(shape, dtype=np.float32)
    flags = np.zeros(shape, dtype=bool)
    fields = {
        "images": np.zeros((*shape, 4, 4, 3), dtype=np.uint8),
        "task_ids": np.zeros(shape, dtype=np.int64),
        "tasks": ("drawer-open-v3",),
        "instructions": ("open the drawer",),
        "initial_states": np.zeros(shape, dtype=np.int64),
        "episode_ids": np.zeros(shape, dtype=np.int64),
        "group_ids": np.zeros(shape, dtype=np.int64),
        "proprio": np.zeros((*shape, 4), dtype=np.float32),
        "time_fraction": numbers,
        "tokens": np.zeros((*shape, tokens), dtype=np.int64),
        "log_probs": np.zeros((*shape, tokens), dtype=np.float32),
        "values": numbers,
        "rewards": numbers,
        "terminated": flags,
        "truncated": flags,
        "final_values": numbers,
        "next_values": np.zeros(envs, dtype=np.float32),
        "next_images": np.zeros((envs, 4, 4, 3), dtype=np.uint8),
        "succeeded": flags,
        "valid": ~flags,
        "temperature": 1.0,
    }
    return Rollout(**fields)
