"""Groups of an iteration: replaced where they say nothing, never chosen by who was fast, the same on any ranks."""

from __future__ import annotations

import numpy as np
import pytest

from builders.group_runs import GroupRun
from builders.thread_ranks import on_ranks
from vla_rl.envs.known_answers import ChainEnv
from vla_rl.rollout import PlayedGroups


def chain_run(**changes: object) -> GroupRun:
    return GroupRun(ChainEnv, 7, **{"group": 4, "groups": 4, "extra": 6, "num_envs": 8} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_envs", [1, 3, 8, 40])
def test_all_that_was_drawn_is_played_to_its_end_and_nothing_else(num_envs: int) -> None:
    """Also groups that are larger than the environments, in several rounds."""
    run = chain_run(num_envs=num_envs)
    drawn: list[list[object]] = []
    draw = run.groups.draw
    run.groups.draw = lambda size: drawn.append(draw(size)) or drawn[-1]  # type: ignore[func-returns-value]
    played = run.play()
    finished = played.collected.finished
    assert [e.spec for e in finished] == [spec for group in drawn for spec in group]
    assert [e.number for e in finished] == list(range(4 * played.played))
    assert [e.group for e in finished] == [n // 4 for n in range(4 * played.played)]
    assert all(e.success or e.turns == 7 for e in finished)
    assert played.collected.rollout.num_turns == sum(e.turns for e in finished)
    assert not run.collector.playing


def test_what_an_episode_does_depends_on_nothing_but_its_number() -> None:
    """Neither on how many environments there are, and so not on who is done first."""
    outcomes = [
        {(e.number, e.spec, e.success, e.turns) for e in chain_run(num_envs=n, extra=0).play().collected.finished}
        for n in (1, 3, 16)
    ]  # fmt: skip
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len({turns for *_, turns in outcomes[0]}) > 1


def mixed_by_hand(played: PlayedGroups) -> list[int]:
    of: dict[int, set[bool]] = {}
    for episode in played.collected.finished:
        of.setdefault(episode.group, set()).add(episode.success)
    return sorted(group for group, ends in of.items() if len(ends) == 2)


def test_groups_that_are_all_alike_are_replaced_while_the_budget_lasts() -> None:
    replaced = set[int]()
    for seed in range(6):
        played = chain_run(seed=seed).play()
        assert played.mixed.tolist() == mixed_by_hand(played)
        assert 4 <= played.played <= 10
        assert len(played.mixed) >= 4 or played.played == 10
        replaced.add(played.played)
    assert len(replaced) > 1
    assert chain_run(extra=0).play().played == 4


def test_a_round_fills_the_environments_and_what_is_over_is_kept() -> None:
    run = chain_run(num_envs=16, extra=100)
    rounds: list[int] = []
    collect = run.collector.collect_episodes
    run.collector.collect_episodes = lambda groups, *rest: (
        rounds.append(len(groups)),
        collect(groups, *rest),
    )[1]  # type: ignore[method-assign]
    for iteration in range(4):
        played = run.play(iteration)
        assert len(played.mixed) >= 4
    assert set(rounds) == {4}


def test_a_hopeless_policy_ends_with_the_budget() -> None:
    run = GroupRun(ChainEnv, 2, group=2, groups=3, extra=5)  # five cells in two turns
    run.curriculum._states[:] = 0
    played = run.play()
    assert played.played == 8
    assert len(played.mixed) == 0
    assert not any(e.success for e in played.collected.finished)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_play_what_one_process_plays(ranks: int) -> None:
    alone = [chain_run().groups.play(1.0, 0)]
    of_ranks = on_ranks(ranks, lambda world: chain_run(world=world).groups.play(1.0, 0))
    (expected,) = alone
    for played in of_ranks:
        assert played.collected.finished != []
        assert [(e.number, e.success, e.turns) for e in played.collected.finished] == [
            (e.number, e.success, e.turns) for e in expected.collected.finished
        ]
        assert played.mixed.tolist() == expected.mixed.tolist()
        whole, one = played.collected.rollout, expected.collected.rollout
        assert whole.num_turns == one.num_turns
        for number in np.unique(one.episode_ids[one.valid]):
            there, here = whole.episode_ids == number, one.episode_ids == number
            assert np.array_equal(whole.tokens[there], one.tokens[here])
            shards = (whole.shards[np.nonzero(there)[1]], one.shards[np.nonzero(here)[1]])  # type: ignore[index]
            assert np.array_equal(*shards)
    own = [played.own.rollout for played in of_ranks]
    assert sum(rollout.num_turns for rollout in own) == expected.collected.rollout.num_turns
