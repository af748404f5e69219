"""What a window says about the policy that played it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.policies import narrow_policy
from builders.started_demos import TOY
from vla_rl.envs.registry import benchmark, task_names
from vla_rl.envs.vector.make import make_vector_env
from vla_rl.rollout import Collector, rollout_metrics
from vla_rl.rollout.metrics import PHASES
from vla_rl.types import EpisodeSpec, Observation


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_the_entropy_of_play_is_that_of_the_policy(temperature: float) -> None:
    words = benchmark("toy").instructions("toy")
    policy, task = narrow_policy(words), task_names("toy")[0]
    with make_vector_env(replace(TOY, num_envs=4)) as envs:
        collector = Collector(policy, envs, lambda env, shard: EpisodeSpec(task, env), seed=3)
        collector.start()
        collected = collector.collect(60, temperature, 0)
        dense = np.zeros_like(collected.rollout.rewards)
        metrics = rollout_metrics(collected, dense, [dict.fromkeys(PHASES, 0.0)], 1.0, envs)
    rollout = collected.rollout
    rows = rollout.valid.sum()
    seen = Observation(
        rollout.images.reshape(rows, *rollout.images.shape[2:]),
        tuple(rollout.instructions[i] for i in rollout.task_ids.ravel()),
        rollout.proprio.reshape(rows, -1),
        rollout.time_fraction.ravel(),
    )
    tokens = torch.from_numpy(rollout.tokens.reshape(rows, -1))
    with torch.no_grad():
        exact = float(policy.evaluate(seen, tokens, temperature).entropy.mean())
    error = rollout.log_probs.std() / np.sqrt(rollout.log_probs.size)
    assert abs(metrics["rollout/entropy"] - exact) < 5 * error
    assert exact > 10 * error
