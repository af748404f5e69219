"""What a rollout window says about the policy, the simulators and the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float32

from vla_rl.distributed.world import SingleProcess, World
from vla_rl.envs.env import VectorEnv
from vla_rl.policies.policy import decided, meant
from vla_rl.rollout.collector import Collected
from vla_rl.runtime.memory import resident_memory
from vla_rl.types import Rollout

PHASES = ("simulate", "infer", "score", "learn", "sync", "wait", "other")
"""What an iteration's seconds go to: waiting for simulators, inference, the reward model, learning, the exchange of
gradients (sync), waiting for other ranks or for a window that is played beside the learning, and the rest."""


def rollout_metrics(
    collected: Collected,
    dense_rewards: Float32[np.ndarray, "M N"],
    ranks: Sequence[Mapping[str, float]],
    wall_seconds: float,
    envs: VectorEnv,
    world: World = SingleProcess(),
    policy: object = None,
) -> dict[str, float]:
    """Metrics of one window of all processes. Success, length and returns are of the episodes that ended in it.

    Those that started at a state of a demonstration count as episodes, and for nothing else here (`Starts.metrics`).

    `rollout/success_rate` is the share of those episodes: a task that the curriculum plays often weighs much in it. The
    mean over tasks is the curriculum's `curriculum/success_mean`.

    `rollout/entropy` is the mean of -log p of the tokens that were drawn, in nats: an unbiased estimate of their
    entropy at the temperature of play, known from the first window on.

    Where the answers of `policy` end with a token of their own, `rollout/action_tokens` is how many a turn has, and
    `rollout/invalid_actions` the share of turns that meant no action, in which the robot stood still.

    ranks: what each has spent its seconds on. `time/*` split the iteration's wall seconds, as the mean over them;
    `speed/*` count over the whole iteration, `speed/rollout_*` over the time spent playing alone. Sparse and dense
    return are per episode started-or-ended share: the window's total divided by the episodes that ended, so that a
    dense reward can be compared with success.
    """
    finished = collected.finished
    playing = sum(collected.seconds.values())
    turns = collected.rollout.num_turns
    metrics = {
        "rollout/episodes": float(len(finished)),
        "rollout/turns": float(turns),
        "rollout/simulator_steps": float(collected.simulator_steps),
        "rollout/infrastructure_errors": float(sum(world.gather(envs.infrastructure_errors))),
        "speed/turns_per_second": turns / wall_seconds,
        "speed/episodes_per_second": len(finished) / wall_seconds,
        "speed/rollout_turns_per_second": turns / max(playing, 1e-9),
        "speed/rollout_episodes_per_second": len(finished) / max(playing, 1e-9),
        "memory/main_mb": sum(world.gather(resident_memory(children=False))) / 2**20,
        "memory/workers_mb": sum(world.gather(envs.memory_bytes())) / 2**20,
    }
    if collected.rollout.valid.any():
        metrics |= _token_metrics(collected.rollout, policy)
    for name in PHASES:
        metrics[f"time/{name}"] = float(np.mean([rank[name] for rank in ranks]))
    whole = [episode for episode in finished if episode.spec.start is None]
    if whole:
        assisted = collected.rollout.assisted
        counted = slice(None) if assisted is None or not assisted.any() else ~assisted
        sparse, dense = collected.rollout.rewards[counted], dense_rewards[counted]
        metrics["rollout/success_rate"] = float(np.mean([e.success for e in whole]))
        metrics["rollout/episode_length"] = float(np.mean([e.turns for e in whole]))
        metrics["rollout/return_sparse"] = float(sparse.sum()) / len(whole)
        metrics["rollout/return_dense"] = float(dense.sum()) / len(whole)
        for task in envs.tasks:
            outcomes = [e.success for e in whole if e.spec.task == task]
            if outcomes:
                metrics[f"success/{task}"] = float(np.mean(outcomes))
    return metrics


def _token_metrics(rollout: Rollout, policy: object) -> dict[str, float]:
    drawn = rollout.log_probs[rollout.valid]
    tokens = torch.from_numpy(rollout.tokens[rollout.valid])
    decisions, means_actions = decided(policy, tokens), meant(policy, tokens)
    if decisions is None or means_actions is None:
        return {"rollout/entropy": -float(drawn.mean(dtype=np.float64))}
    return {
        "rollout/entropy": -float(drawn[decisions].mean(dtype=np.float64)),
        "rollout/action_tokens": float(decisions.sum(1).mean()),
        "rollout/invalid_actions": 1.0 - float(means_actions.mean()),
    }
