"""Several processes learn what one would: the same gradients, decisions and weights on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from thread_ranks import ThreadRank, on_ranks
from torch import nn

from builders.policies import narrow_policy
from builders.rollouts import window
from vla_rl.algorithms.advantages import compute_advantages
from vla_rl.algorithms.gradients import ThreadedGradients
from vla_rl.algorithms.learner import TrainingDivergedError
from vla_rl.algorithms.minibatches import minibatches
from vla_rl.algorithms.ppo import PPO
from vla_rl.config import (
    ConfigError,
    CriticConfig,
    CurriculumConfig,
    OptimizerConfig,
    PPOConfig,
    ScheduleConfig,
    TrainConfig,
)
from vla_rl.curriculum import Outcomes, TaskSampler
from vla_rl.distributed import SingleProcess, World
from vla_rl.policies import OpenVLAPolicy
from vla_rl.training.state import TrainState, open_training_run
from vla_rl.types import Rollout

ENVS_OF = ([0, 1, 3], [2], [4, 5])
"""Which of the environments each rank has, where there are three."""
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


def own_part(rollout: Rollout, envs: list[int]) -> Rollout:
    """The window as the rank sees it that has these environments."""
    everyone = rollout.values.shape[1]
    parts: dict[str, Any] = {}
    for name, value in vars(rollout).items():
        if isinstance(value, np.ndarray) and value.ndim >= 2 and value.shape[1] == everyone:
            parts[name] = value[:, envs]
    parts |= {"next_values": rollout.next_values[envs], "next_images": rollout.next_images[envs]}
    return replace(rollout, **parts)


def practise(
    world: World,
    envs: list[int],
    policy: OpenVLAPolicy,
    critic: CriticConfig,
    settings: PPOConfig = SETTINGS,
    learning_rate: float = 1e-3,
    iterations: int = 3,
) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
    """Learn from windows of all six environments, of which this rank has `envs`; metrics, and weights at the end."""
    optimizer = OptimizerConfig(learning_rate=learning_rate, warmup_steps=2)
    learner = PPO(policy, settings, optimizer, critic, seed=0, world=world)
    metrics = []
    for iteration in range(iterations):
        rollout = own_part(play(policy, iteration), envs)
        nothing = np.zeros_like(rollout.rewards)
        batch = compute_advantages(rollout, nothing, settings, world=world)
        metrics.append(learner.update(batch, iteration, 0.0))
    return metrics, [*policy.policy_parameters(), *policy.critic_parameters()]


ALL = [env for part in ENVS_OF for env in part]


@pytest.mark.parametrize("critic", [SHARED, SEPARATE], ids=["shared", "separate"])
def test_three_ranks_learn_what_one_process_learns(critic: CriticConfig) -> None:
    alone, weights = practise(SingleProcess(), ALL, policy_with(critic), critic)
    own = [policy_with(critic) for _ in ENVS_OF]
    ranks = on_ranks(3, lambda world: practise(world, ENVS_OF[world.rank], own[world.rank], critic))
    for metrics, own_weights in ranks:
        assert all(torch.equal(a, b) for a, b in zip(own_weights, ranks[0][1], strict=True)), (
            "the ranks have grown apart"
        )
        for a, b in zip(own_weights, weights, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        for mine, expected in zip(metrics, alone, strict=True):
            assert mine.keys() == expected.keys()
            for name in mine:
                assert mine[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    untrained = [*policy_with(critic).policy_parameters()]
    moved = max(
        float((a - b).detach().abs().max()) for a, b in zip(weights, untrained, strict=False)
    )
    assert moved > 1e-3, "nothing was learned: the comparison would say nothing"


def test_all_ranks_stop_their_epochs_at_the_same_kl() -> None:
    """The divergence of one rank's own samples differs from another's; they must stop by that of all."""
    settings = replace(SETTINGS, epochs=30, critic_warmup=0, target_kl=0.02)
    own = [policy_with(SEPARATE) for _ in range(4)]
    rest = (SEPARATE, settings, 3e-3, 1)
    alone, _ = practise(SingleProcess(), ALL, own[3], *rest)
    ranks = on_ranks(3, lambda world: practise(world, ENVS_OF[world.rank], own[world.rank], *rest))
    steps = {metrics[0]["losses/policy_steps"] for metrics, _ in ranks}
    assert steps == {alone[0]["losses/policy_steps"]}
    assert 1 <= steps.pop() < 30


def test_a_rank_whose_log_probs_are_wrong_stops_all() -> None:
    own = [policy_with(SEPARATE) for _ in ENVS_OF]

    def work(world: ThreadRank) -> str:
        policy = own[world.rank]
        learner = PPO(policy, SETTINGS, OptimizerConfig(), SEPARATE, seed=0, world=world)
        rollout = own_part(play(policy, 0), ENVS_OF[world.rank])
        batch = compute_advantages(rollout, np.zeros_like(rollout.rewards), SETTINGS, world=world)
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
        own = torch.tensor(rows[world.rank], dtype=torch.int64)
        return parameters, ThreadedGradients(2, 2, world=world).backward(loss, own, parameters)

    parameters, loss = problem()
    value, numbers = loss(torch.arange(6))
    (expected,) = torch.autograd.grad(value, parameters[:1])
    for (weight, unused), stats in on_ranks(3, work):
        torch.testing.assert_close(weight.grad, expected)
        assert unused.grad is None
        assert stats == pytest.approx(numbers)


@pytest.mark.parametrize("totals", [(9, 2, 0), (4, 4, 4), (1, 0, 0)])
def test_ranks_go_through_their_samples_in_equally_many_steps(totals: tuple[int, ...]) -> None:
    def work(world: World) -> list[list[int]]:
        order = torch.Generator().manual_seed(0)
        parts = minibatches(totals[world.rank], 2, 2, order, world)
        return [part.tolist() for part in parts]

    ranks = on_ranks(3, work)
    assert len({len(parts) for parts in ranks}) == 1
    for parts, total in zip(ranks, totals, strict=True):
        assert sorted(row for part in parts for row in part) == sorted([*range(total)] * 2)


def test_every_rank_has_the_same_curriculum() -> None:
    ended = [[("a", True)] * 5, [("b", False), ("a", False)], [("b", True)] * 3]

    def sampler() -> TaskSampler:
        return TaskSampler(CurriculumConfig(window=4), ["a", "b"], np.arange(3), seed=0)

    def work(world: World) -> list[float]:
        curriculum = sampler()
        outcomes = Outcomes(curriculum, world)
        for task, success in ended[world.rank]:
            outcomes.observe(task, success)
        outcomes.end_window()
        return curriculum.successes().tolist()

    expected = sampler()
    for task, success in [episode for part in ended for episode in part]:
        expected.observe(task, success)
    assert on_ranks(3, work) == [expected.successes().tolist()] * 3


def test_alone_the_curriculum_hears_of_each_episode_at_once() -> None:
    curriculum = TaskSampler(CurriculumConfig(), ["a"], np.arange(3), seed=0)
    outcomes = Outcomes(curriculum, SingleProcess())
    outcomes.observe("a", True)
    assert curriculum.successes().tolist() == [1.0]
    outcomes.end_window()
    outcomes.observe("a", False)
    assert curriculum.successes().tolist() == [0.5]


def test_time_and_episodes_of_a_run_are_the_same_on_every_rank_and_rank_0_alone_writes() -> None:
    def work(world: World) -> tuple[float, int, bool, bool, list[Mapping[str, float]]]:
        logged: list[Mapping[str, float]] = []
        run = SimpleNamespace(log=lambda iteration, metrics: logged.append(metrics))
        nothing: Any = None
        state = TrainState(
            run, nothing, nothing, nothing, nothing, nothing, save_every=10, world=world
        )  # fmt: skip
        metrics = {"rollout/episodes": 3.0 + world.rank, "rollout/turns": 10.0}
        state.advance(metrics, seconds=60.0 * (1 + world.rank))
        told = SimpleNamespace(requested=world.rank == 1)
        quiet = SimpleNamespace(requested=False)
        long, short = ScheduleConfig(minutes=2), ScheduleConfig(iterations=0, minutes=1)
        assert not state.goes_on(long, told), "one rank was asked to stop, the others go on"
        goes_on = state.goes_on(long, quiet), state.goes_on(short, quiet)
        return (state.seconds, state.episodes, *goes_on, logged)

    ranks = on_ranks(3, work)
    assert [rank[:4] for rank in ranks] == [(60.0, 3 + 4 + 5, True, False)] * 3
    assert [len(rank[4]) for rank in ranks] == [1, 0, 0]
    assert ranks[0][4][0]["total/episodes"] == 12


def test_training_refuses_processes_it_cannot_divide_its_work_among(tmp_path: Path) -> None:
    config = replace(TrainConfig(), run=replace(TrainConfig().run, root=str(tmp_path)))
    with pytest.raises(ConfigError, match="runs in one process, got 2"):
        open_training_run(config, None, SingleProcess(size=2))
    assert not list(tmp_path.iterdir())
