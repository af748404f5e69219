"""GRPO against answers that are known: a bandit it must solve, and advantages written down by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.group_runs import GroupRun, no_dense
from vla_rl.algorithms.grpo import GRPO, group_batch
from vla_rl.algorithms.learner import TrainingDivergedError
from vla_rl.config import GRPOConfig, OptimizerConfig
from vla_rl.envs.known_answers import ChainEnv
from vla_rl.policies.policy import has_critic

CONFIG = GRPOConfig(group_size=4, groups=4, minibatch=32)
FAST = OptimizerConfig(learning_rate=1e-3, warmup_steps=4)


def practised(
    advantage: str, sign: float = 1.0, wanted: float = 0.95, seed: int = 0
) -> tuple[GroupRun, bool]:
    config = replace(CONFIG, advantage=advantage, epochs=2, groups=8)
    run = GroupRun(num_envs=16, group=4, groups=8, extra=4, seed=seed)
    learner = GRPO(run.policy, config, FAST, seed)
    for iteration in range(40):
        played = run.play(iteration)
        if sign * (run.success_of(played) - wanted) >= 0:
            return run, True
        batch, _ = group_batch(played, no_dense(played), config)
        learner.update(replace(batch, advantages=sign * batch.advantages), iteration, 0.0)
    return run, False


@pytest.mark.parametrize("advantage", ["normalized", "centered", "leave-one-out"])
def test_the_bandits_best_arm_is_learned(advantage: str) -> None:
    run, learned = practised(advantage)
    assert learned, "a random policy gets 0.5, and so does this one"
    assert not has_critic(run.policy)


def test_with_the_sign_turned_the_other_arm_is_learned() -> None:
    """The test above can fail."""
    assert practised("normalized", sign=-1.0, wanted=0.05)[1]


def test_two_groups_of_the_bandit_and_their_advantages() -> None:
    run = GroupRun(group=4, groups=2)
    played = run.play()
    batch, numbers = group_batch(played, no_dense(played), replace(CONFIG, keep="all"))
    assert len(batch) == 8
    assert batch.episodes is not None
    success = {e.number: e.success for e in played.collected.finished}
    group = {e.number: e.group for e in played.collected.finished}
    for turn, number in enumerate(batch.episodes.tolist()):
        members = [success[n] for n in group if group[n] == group[number]]
        rate = np.mean(members)
        deviation = np.std(members, ddof=1)
        expected = (success[number] - rate) / deviation if 0 < rate < 1 else 0.0
        assert batch.advantages[turn].item() == pytest.approx(expected, abs=1e-4)
        assert bool(batch.succeeded[turn]) == success[number]
    assert numbers["groups/played"] == 2.0
    counted = ("groups/mixed", "groups/all_succeeded", "groups/all_failed")
    assert sum(numbers[name] for name in counted) == 2.0


def chain(keep: str, **changes: object) -> tuple[GroupRun, GRPOConfig]:
    config = replace(CONFIG, keep=keep, **changes)
    return GroupRun(ChainEnv, 7, group=4, groups=6), config


def test_groups_that_are_all_alike_are_left_out() -> None:
    run, config = chain("mixed")
    played = run.play()
    batch, numbers = group_batch(played, no_dense(played), config)
    every, _ = group_batch(played, no_dense(played), replace(config, keep="all"))
    assert 0 < numbers["grpo/groups_kept"] == len(played.mixed) < 6
    assert len(batch) < len(every) == played.collected.rollout.num_turns
    kept = {e.number for e in played.collected.finished if e.group in played.mixed}
    assert batch.episodes is not None
    assert set(batch.episodes.tolist()) == kept
    assert (batch.advantages != 0).all()


def test_every_turn_or_every_episode_weighs_the_same() -> None:
    run, config = chain("mixed")
    played = run.play()
    turns, _ = group_batch(played, no_dense(played), config)
    episodes, _ = group_batch(played, no_dense(played), replace(config, weighting="episodes"))
    assert turns.episodes is not None
    lengths = {e.number: e.turns for e in played.collected.finished}
    assert len({lengths[n] for n in turns.episodes.tolist()}) > 1
    mean = np.mean([lengths[n] for n in set(turns.episodes.tolist())])
    factors = torch.tensor([mean / lengths[n] for n in turns.episodes.tolist()])
    torch.testing.assert_close(episodes.advantages, turns.advantages * factors.float())


def test_dense_rewards_are_part_of_what_an_episode_is_worth() -> None:
    run, config = chain("all", advantage="centered")
    played = run.play()
    rollout = played.collected.rollout
    dense = np.where(rollout.valid, rollout.time_fraction, 9.0).astype(np.float32)
    batch, _ = group_batch(played, dense, config)
    assert batch.episodes is not None
    worth = {
        e.number: float(e.success)
        + float(dense[rollout.valid & (rollout.episode_ids == e.number)].sum())
        for e in played.collected.finished
    }
    for e in played.collected.finished:
        of_group = [worth[o.number] for o in played.collected.finished if o.group == e.group]
        found = batch.advantages[torch.from_numpy(batch.episodes == e.number)]
        expected = torch.full_like(found, worth[e.number] - float(np.mean(of_group)))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_where_nothing_is_left_to_learn_from_nothing_is_learned() -> None:
    run, config = chain("mixed")
    played = replace(run.play(), mixed=np.zeros(0, np.int64))
    batch, numbers = group_batch(played, no_dense(played), config)
    assert len(batch) == 0
    assert numbers["grpo/groups_kept"] == 0.0
    learner = GRPO(run.policy, config, FAST, 0)
    before = [p.detach().clone() for p in run.policy.policy_parameters()]
    assert learner.update(batch, 0, 0.0) == {"losses/policy_steps": 0.0}
    assert all(map(torch.equal, before, run.policy.policy_parameters()))
    assert not learner.policy.optimizer.state


def test_other_weights_than_those_that_played_are_noticed() -> None:
    run, config = chain("all")
    played = run.play()
    batch, _ = group_batch(played, no_dense(played), config)
    with pytest.raises(TrainingDivergedError, match=r"grpo\.logprob_tolerance"):
        GRPO(run.policy, config, FAST, 0).update(replace(batch, temperature=1.5), 0, 0.0)
