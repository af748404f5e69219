"""Several processes learn what one would: the same gradients, decisions and weights on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from builders.policies import narrow_policy
from builders.rollouts import window
from builders.thread_ranks import ThreadRank, on_ranks
from vla_rl.algorithms.advantages import compute_advantages
from vla_rl.algorithms.gradients import ThreadedGradients
from vla_rl.algorithms.learner import TrainingDivergedError
from vla_rl.algorithms.ppo import PPO
from vla_rl.config import (
    ConfigError,
    CriticConfig,
    CurriculumConfig,
    OptimizerConfig,
    PPOConfig,
    ScheduleConfig,
)
from vla_rl.config.parallel import ParallelConfig
from vla_rl.curriculum import TaskSampler
from vla_rl.distributed import Shards, SingleProcess, World
from vla_rl.policies import OpenVLAPolicy
from vla_rl.runtime.run_folder import Run
from vla_rl.training.state import FollowedRun, TrainState
from vla_rl.types import EpisodeSpec, Rollout

ENVS, COUNT = 6, 5
"""Environments of the run, and shards: three ranks have one, two and two of these."""
SETTINGS = PPOConfig(
    minibatch=10_000, epochs=3, critic_warmup=1, critic_epochs=2, critic_first_epochs=2, entropy_coef=0.01
)  # fmt: skip
SHARED, SEPARATE = CriticConfig(kind="shared"), CriticConfig(kind="separate")


def policy_with(critic: CriticConfig) -> OpenVLAPolicy:
    return narrow_policy(["go on"], critic)


def play(policy: OpenVLAPolicy, iteration: int, turns: int = 5, envs: int = 6) -> Rollout:
    """A window of noise, played by the policy; every third turn has no outcome in one environment."""
    rng = np.random.default_rng(iteration)
    shape = (turns, envs)
    valid = np.ones(shape, bool)
    valid[::3, 2] = False
    rollout = window(
        turns,
        envs,
        images=rng.integers(0, 256, (*shape, 32, 32, 3), dtype=np.uint8),
        instructions=("go on",),
        time_fraction=rng.random(shape, dtype=np.float32),
        rewards=rng.random(shape, dtype=np.float32),
        terminated=rng.random(shape) < 0.2,
        next_values=rng.random(envs, dtype=np.float32),
        next_images=np.zeros((envs, 32, 32, 3), np.uint8),
        succeeded=rng.random(shape) < 0.5,
        valid=valid,
    )
    uniforms = rng.random((turns * envs, 4), dtype=np.float32)
    output = policy.act(rollout.flat_observation(), 1.0, uniforms)
    return replace(
        rollout,
        tokens=output.tokens.numpy().reshape(*shape, 4),
        log_probs=output.log_probs.numpy().reshape(*shape, 4),
        values=output.values.numpy().reshape(shape),
    )


def own_part(rollout: Rollout, shards: Shards) -> Rollout:
    """The window as a rank knows it: all of it but the others' images."""
    own = slice(shards.own_envs.start, shards.own_envs.stop)
    return replace(
        rollout,
        images=rollout.images[:, own],
        next_images=rollout.next_images[own],
        first=own.start,
        shards=shards.by_env(),
    )


def practise(
    world: World,
    policy: OpenVLAPolicy,
    critic: CriticConfig,
    settings: PPOConfig = SETTINGS,
    learning_rate: float = 1e-3,
    iterations: int = 3,
    **changes: Any,
) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
    """Learn from windows of all environments, of which this rank has its part; metrics, and weights at the end.

    `changes`: of the windows.
    """
    shards = Shards.of(ENVS, COUNT, world)
    optimizer = OptimizerConfig(learning_rate=learning_rate, warmup_steps=2)
    learner = PPO(policy, settings, optimizer, critic, seed=0, world=world, shards=shards)
    metrics = []
    for iteration in range(iterations):
        rollout = own_part(replace(play(policy, iteration), **changes), shards)
        batch = compute_advantages(rollout, np.zeros_like(rollout.rewards), settings)
        metrics.append(learner.update(batch, iteration, 0.0))
        saved = learner.state_dict()
        learner.load_state_dict(saved)
    return metrics, [*policy.policy_parameters(), *policy.critic_parameters()]


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("minibatch", [10_000, 7])
@pytest.mark.parametrize("critic", [SHARED, SEPARATE], ids=["shared", "separate"])
def test_ranks_learn_what_one_process_learns(
    critic: CriticConfig, minibatch: int, size: int
) -> None:
    """To the bit: every sum has the same brackets, and this window is played without batches of another size."""
    settings = replace(SETTINGS, minibatch=minibatch)
    alone, weights = practise(SingleProcess(), policy_with(critic), critic, settings)
    own = [policy_with(critic) for _ in range(size)]
    ranks = on_ranks(size, lambda world: practise(world, own[world.rank], critic, settings))
    for metrics, own_weights in ranks:
        assert all(torch.equal(a, b) for a, b in zip(own_weights, ranks[0][1], strict=True)), (
            "the ranks have grown apart"
        )
        assert all(torch.equal(a, b) for a, b in zip(own_weights, weights, strict=True))
        for own_numbers, numbers in zip(metrics, alone, strict=True):
            # float32's rounding itself, and so another with batches of another size
            rounding = "losses/logprob_max_difference"
            assert own_numbers.get(rounding, 0) == pytest.approx(numbers.get(rounding, 0), abs=1e-6)
            rest = {name: value for name, value in numbers.items() if name != rounding}
            own_rest = {name: value for name, value in own_numbers.items() if name != rounding}
            assert own_rest == pytest.approx(rest, rel=1e-12, abs=1e-15)
    untrained = [*policy_with(critic).policy_parameters()]
    moved = max(
        float((a - b).detach().abs().max()) for a, b in zip(weights, untrained, strict=False)
    )
    assert moved > 1e-3, "nothing was learned: the comparison would say nothing"


def test_ranks_slow_down_and_wait_by_what_all_have_played() -> None:
    """A rank that counted its own episodes alone would take steps of another size, or none."""
    settings = replace(
        SETTINGS, half_rate_outcomes=2.0, wait_for_success=True, normalize_within="task", normalize_floor=0.1
    )  # fmt: skip
    won, lost = np.zeros((2, 5, 6), bool)
    won[2, [0, 5]], lost[2, [1, 3]] = True, True
    two_tasks: dict[str, Any] = {
        "tasks": ("one", "two"),
        "instructions": ("go on", "go on"),
        "task_ids": np.tile([0, 0, 1, 1, 0, 0], (5, 1)),  # the second is the middle rank's
        "episode_ids": np.tile(np.arange(6), (5, 1)),
        "rewards": won.astype(np.float32),
        "terminated": won,
        "truncated": lost,
    }
    alone, weights = practise(
        SingleProcess(), policy_with(SEPARATE), SEPARATE, settings, **two_tasks
    )
    # two were won; one was lost in each task, and of the second none was won
    assert [numbers["losses/rate_scale"] for numbers in alone] == pytest.approx([1 / 4] * 3)
    assert alone[0]["losses/tasks_in_sight"] == 0.5
    own = [policy_with(SEPARATE) for _ in range(3)]
    ranks = on_ranks(
        3, lambda world: practise(world, own[world.rank], SEPARATE, settings, **two_tasks)
    )
    for metrics, own_weights in ranks:
        assert all(torch.equal(a, b) for a, b in zip(own_weights, weights, strict=True))
        assert [m["losses/rate_scale"] for m in metrics] == [m["losses/rate_scale"] for m in alone]


def test_ranks_imitate_the_same_kept_successes() -> None:
    """Each has the images of its own alone, also after it has gone on from what all have saved."""
    settings = replace(SETTINGS, kept_successes=3, self_imitation_coef=1.0, minibatch=12)
    won = np.zeros((5, 6), bool)
    won[4, [0, 3, 5]] = True
    whole_episodes: dict[str, Any] = {
        "episode_ids": np.tile(np.arange(6), (5, 1)),
        "rewards": won.astype(np.float32),
        "terminated": won,
        "truncated": np.roll(won, 1, axis=1) & ~won,
        "succeeded": np.tile(won[4], (5, 1)),
    }
    alone, weights = practise(
        SingleProcess(), policy_with(SEPARATE), SEPARATE, settings, **whole_episodes
    )
    assert [numbers["kept/episodes"] for numbers in alone] == [3, 3, 3]
    assert alone[1]["losses/imitation"] > 0
    own = [policy_with(SEPARATE) for _ in range(3)]
    for _, own_weights in on_ranks(
        3, lambda world: practise(world, own[world.rank], SEPARATE, settings, **whole_episodes)
    ):
        assert all(torch.equal(a, b) for a, b in zip(own_weights, weights, strict=True))


def test_all_ranks_stop_their_epochs_at_the_same_kl() -> None:
    """The divergence of one rank's own samples differs from another's; they must stop by that of all."""
    settings = replace(SETTINGS, epochs=30, critic_warmup=0, target_kl=0.02)
    own = [policy_with(SEPARATE) for _ in range(4)]
    rest = (SEPARATE, settings, 3e-3, 1)
    alone, _ = practise(SingleProcess(), own[3], *rest)
    ranks = on_ranks(3, lambda world: practise(world, own[world.rank], *rest))
    steps = {metrics[0]["losses/policy_steps"] for metrics, _ in ranks}
    assert steps == {alone[0]["losses/policy_steps"]}
    assert 1 <= steps.pop() < 30


def test_a_rank_whose_log_probs_are_wrong_stops_all() -> None:
    own = [policy_with(SEPARATE) for _ in range(3)]

    def work(world: ThreadRank) -> str:
        policy, shards = own[world.rank], Shards.of(ENVS, COUNT, world)
        learner = PPO(
            policy, SETTINGS, OptimizerConfig(), SEPARATE, seed=0, world=world, shards=shards
        )
        rollout = own_part(play(policy, 0), shards)
        batch = compute_advantages(rollout, np.zeros_like(rollout.rewards), SETTINGS)
        if world.rank == 1:
            batch = replace(batch, log_probs=batch.log_probs + 1.0)
        with pytest.raises(TrainingDivergedError, match="differ from the sampler's by up to 1"):
            learner.update(batch, 0, 0.0)
        return "stopped"

    assert on_ranks(3, work) == ["stopped"] * 3


@pytest.mark.parametrize("rows", [([0, 4, 1], [2], [3, 5]), ([0, 1, 2, 3, 4, 5], [], [])])
def test_a_gradient_is_that_of_the_mean_over_all_ranks(rows: tuple[list[int], ...]) -> None:
    data = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def problem() -> tuple[list[nn.Parameter], Any]:
        weight, unused = nn.Parameter(torch.ones(3).double()), nn.Parameter(torch.zeros(2))

        def loss(chosen: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
            per_row = (data[chosen] @ weight).square()
            return per_row.mean(), {"mean": per_row.mean().item(), "most_max": per_row.max().item()}

        return [weight, unused], loss

    def work(world: World) -> tuple[list[nn.Parameter], dict[str, float]]:
        parameters, loss = problem()
        own = [torch.tensor(rows[world.rank], dtype=torch.int64)]
        gradients = ThreadedGradients(2, 2, world=world, shards=Shards.of(3, 3, world))
        return parameters, gradients.backward(loss, own, parameters)

    parameters, loss = problem()
    value, numbers = loss(torch.arange(6))
    (expected,) = torch.autograd.grad(value, parameters[:1])
    for (weight, unused), stats in on_ranks(3, work):
        torch.testing.assert_close(weight.grad, expected)
        assert unused.grad is None
        assert stats == pytest.approx(numbers)


def test_every_rank_has_the_same_curriculum() -> None:
    """Draws of an environment are the same whoever makes them, and what all have drawn is known afterwards."""
    outcomes = [("a", True), ("b", False), ("a", False)]

    def draws(world: World) -> tuple[list[EpisodeSpec], dict[str, Any]]:
        shards = Shards.of(ENVS, COUNT, world)
        curriculum = TaskSampler(
            CurriculumConfig(window=4), ["a", "b"], np.arange(17), seed=0, shards=COUNT
        )
        drawn = []
        for _ in range(3):
            drawn += [curriculum.draw_one(env, shards.of_env(env)) for env in shards.own_envs]
            curriculum.end_window(outcomes, world)
        return drawn, curriculum.state_dict()

    alone, state = draws(SingleProcess())
    ranks = on_ranks(3, draws)
    assert [of_rank[1] for of_rank in ranks] == [state] * 3
    together = [
        spec
        for window in range(3)
        for drawn, _ in ranks
        for spec in drawn[window * len(drawn) // 3 : (window + 1) * len(drawn) // 3]
    ]
    assert together == alone


def test_time_and_episodes_of_a_run_are_the_same_on_every_rank_and_rank_0_alone_writes() -> None:
    def work(world: World) -> tuple[float, int, bool, bool, list[Mapping[str, float]]]:
        logged: list[Mapping[str, float]] = []
        run = Mock(spec=Run if world.rank == 0 else FollowedRun)
        run.log = lambda iteration, metrics: logged.append(metrics)
        nothing: Any = None
        state = TrainState(
            run, nothing, nothing, nothing, nothing, nothing, save_every=10, world=world
        )  # fmt: skip
        metrics = {"rollout/episodes": 12.0, "rollout/turns": 10.0}
        state.advance(metrics, seconds=60.0 * (1 + world.rank))
        told = SimpleNamespace(requested=world.rank == 1)
        quiet = SimpleNamespace(requested=False)
        long, short = ScheduleConfig(minutes=2), ScheduleConfig(iterations=0, minutes=1)
        assert not state.goes_on(long, told), "one rank was asked to stop, the others go on"
        goes_on = state.goes_on(long, quiet), state.goes_on(short, quiet)
        return (state.seconds, state.episodes, *goes_on, logged)

    ranks = on_ranks(3, work)
    assert [rank[:4] for rank in ranks] == [(60.0, 12, True, False)] * 3
    assert [len(rank[4]) for rank in ranks] == [1, 0, 0]
    assert ranks[0][4][0]["total/episodes"] == 12


@pytest.mark.parametrize(("envs", "count", "size"), [(6, 5, 3), (8, 4, 4), (7, 7, 2), (3, 8, 3)])
def test_every_environment_and_shard_belongs_to_one_rank(envs: int, count: int, size: int) -> None:
    ranks = [Shards.of(envs, count, SingleProcess(rank, size)) for rank in range(size)]
    assert [env for rank in ranks for env in rank.own_envs] == [*range(envs)]
    assert [shard for rank in ranks for shard in rank.own] == [*range(min(count, envs))]
    for rank in ranks:
        assert {rank.of_env(env) for env in rank.own_envs} == set(rank.own)


def test_more_ranks_than_shards_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 processes cannot share 4 shards of 8 environments"):
        Shards.of(8, 4, SingleProcess(0, 5))
    with pytest.raises(ConfigError, match=r"parallel.ranks may be at most parallel.shards = 4"):
        ParallelConfig(ranks=5)
