"""Which episodes start on the way of demonstrations: how many, where, and when the place moves back."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

from vla_rl.config import CurriculumConfig, StartsConfig, UserError
from vla_rl.curriculum import Starts, TaskSampler, Way
from vla_rl.types import EpisodeSpec, Start

TASKS = ("reach", "push", "pick")
WAYS = {
    "push": [Way(0, 7, 20, 19), Way(3, 8, 10, 9)],
    "pick": [Way(5, 9, 40, 25)],  # the horizon ends before the demonstration does
}


class Done(NamedTuple):
    spec: EpisodeSpec
    success: bool


def starts(
    ways: Any = None,
    *,
    share: float = 0.5,
    draw: Literal["reverse", "uniform"] = "reverse",
    seed: int = 0,
    fractions: dict[str, float] | None = None,
    **config: Any,
) -> Starts:
    sampler = TaskSampler(CurriculumConfig(), TASKS, np.arange(50, dtype=np.int64), seed)
    settings = StartsConfig("d", share, draw, **config)
    return Starts(settings, sampler, WAYS if ways is None else ways, seed, "digest", fractions)


def test_without_demonstrations_the_episodes_are_the_samplers() -> None:
    plain, wrapped = starts({}).sampler, starts({})
    assert [plain.draw_one(e % 3) for e in range(60)] == [
        wrapped.draw_one(e % 3) for e in range(60)
    ]
    assert plain.draw_group(3) == wrapped.draw_group(3)
    wrapped.end_window([Done(EpisodeSpec("push", 1), True)])
    assert wrapped.metrics() == {}
    assert wrapped.state_dict() is None


def test_a_share_starts_on_the_way_and_the_rest_as_ever() -> None:
    one, plain = starts(share=0.3), starts({})
    drawn = [one.draw_one(e % 4) for e in range(3000)]
    as_ever = [plain.draw_one(e % 4) for e in range(3000)]
    assert [s.task for s in drawn] == [s.task for s in as_ever]
    on_way = [s for s in drawn if s.start is not None]
    assert not [s for s in on_way if s.task == "reach"], "it has no demonstrations"
    eligible = sum(s.task != "reach" for s in drawn)
    assert abs(len(on_way) / eligible - 0.3) < 4 * (0.3 * 0.7 / eligible) ** 0.5
    assert all(s == other for s, other in zip(drawn, as_ever, strict=True) if s.start is None)
    initial = {way.demonstration: way.initial_state for own in WAYS.values() for way in own}
    assert all(s.initial_state == initial[s.start.demonstration] for s in on_way if s.start)
    assert {s.start.demonstration for s in on_way if s.start} == {0, 3, 5}
    assert [s for s in starts(share=0.0).draw_group(50) if s.start] == []


def test_reverse_starts_at_its_share_of_the_length_and_where_a_turn_is_left() -> None:
    drawn = [starts(share=0.99, fraction=0.7, seed=s).draw_one() for s in range(300)]
    frames = {(s.start.demonstration, s.start.frame) for s in drawn if s.start}
    assert frames == {(0, 14), (3, 7), (5, 25)}
    own = starts(share=0.99, fraction=0.7, fractions={"push": 0.2})
    assert own.fractions == {"push": 0.2, "pick": 0.7}


def test_uniform_takes_every_state_alike() -> None:
    one = starts(share=0.99, draw="uniform")
    drawn = [one.draw_one(e % 4) for e in range(30_000)]
    counts = Counter(s.start.frame for s in drawn if s.start and s.start.demonstration == 3)
    assert set(counts) == set(range(1, 10))
    mean = sum(counts.values()) / 9
    assert max(abs(n - mean) for n in counts.values()) < 5 * mean**0.5
    one.end_window([Done(s, True) for s in drawn[:500]])
    assert not [name for name in one.metrics() if name.startswith("starts/fraction")]


def outcomes(one: Starts, task: str, results: list[bool], stage: int | None = None) -> list[Done]:
    now = one.stages[task] if stage is None else stage
    way = one.ways[task][0]
    return [
        Done(EpisodeSpec(task, way.initial_state, Start(way.demonstration, 5, now)), ok)
        for ok in results
    ]


def test_the_share_moves_back_when_enough_of_the_last_ones_succeeded() -> None:
    one = starts(fraction=0.9, step=0.25, window=4, threshold=0.5)
    one.end_window(outcomes(one, "push", [True, False, False]))
    assert one.fractions["push"] == 0.9, "too few of them"
    one.end_window(outcomes(one, "push", [False]))
    assert one.fractions["push"] == 0.9, "one of four"
    one.end_window(outcomes(one, "push", [True]))
    assert one.fractions["push"] == 0.9, "the last four: one of four"
    one.end_window(outcomes(one, "push", [True]))
    assert one.fractions == {"push": 0.65, "pick": 0.9}, "two of the last four, at the threshold"
    # counted anew from there
    one.end_window(outcomes(one, "push", [True] * 3))
    assert one.fractions["push"] == 0.65
    for _ in range(4):
        one.end_window(outcomes(one, "push", [True] * 4))
    assert one.fractions["push"] == 0.0
    drawn = [one.draw_one(e) for e in range(200)]
    assert not [s for s in drawn if s.task == "push" and s.start], "at its beginning"
    assert [s for s in drawn if s.task == "pick" and s.start]


def test_what_started_under_an_earlier_share_is_not_counted() -> None:
    one = starts(fraction=0.9, step=0.1, window=2, threshold=1.0)
    # four more were under way when the second success moved the share
    one.end_window(outcomes(one, "push", [True] * 6))
    assert one.fractions["push"] == 0.8
    one.end_window(outcomes(one, "push", [True] * 5, stage=0))
    assert one.fractions["push"] == 0.8
    one.end_window([Done(EpisodeSpec("push", 7), True)] * 5)
    assert one.fractions["push"] == 0.8, "a true beginning says nothing of the share"
    one.end_window(outcomes(one, "push", [True] * 2))
    assert one.fractions["push"] == 0.7


def test_metrics_are_of_the_assisted_episodes_of_the_last_window() -> None:
    one = starts(window=50)
    one.end_window(outcomes(one, "pick", [True]))
    true = [Done(EpisodeSpec("push", 1), True), Done(EpisodeSpec("reach", 1), True)]
    one.end_window(true + outcomes(one, "push", [True, False, False, False]))
    assert one.metrics() == {
        "starts/episodes": 4.0, "starts/share": pytest.approx(4 / 6), "starts/success_rate": 0.25,
        "starts/success/push": 0.25, "starts/fraction/push": 0.9, "starts/fraction/pick": 0.9,
    }  # fmt: skip


def test_the_draws_of_an_environment_do_not_depend_on_the_others() -> None:
    together, alone = starts(), starts()
    drawn = [together.draw_one(e) for _ in range(20) for e in (0, 1, 2)][2::3]
    own = [alone.draw_one(2) for _ in range(20)]
    assert [(s.task, s.start) for s in drawn] == [(s.task, s.start) for s in own]


def test_draws_and_outcomes_go_on_exactly() -> None:
    settings: dict[str, Any] = {"fraction": 0.5, "step": 0.1, "window": 3, "threshold": 0.3}
    one, again = starts(**settings), starts(**settings)
    for env in range(12):
        one.draw_one(env % 3)
    one.end_window(outcomes(one, "pick", [True] * 3) + outcomes(one, "push", [True, True]))
    state = json.loads(json.dumps(one.state_dict()))
    again.load_state_dict(state)
    again.sampler.load_state_dict(one.sampler.state_dict())
    for other in (one, again):
        other.end_window(outcomes(other, "push", [False]))
        assert other.fractions == {"push": 0.4, "pick": 0.4}, "two of the three were before"
        assert other.stages == {"push": 1, "pick": 1}
    assert [one.draw_one(e % 3) for e in range(30)] == [again.draw_one(e % 3) for e in range(30)]


def test_a_group_starts_from_one_place() -> None:
    one = starts(share=0.9)
    groups = [one.draw_group(4) for _ in range(30)]
    assert all(len({*group}) == 1 for group in groups)
    assert {s.start is None for group in groups for s in group} == {True, False}


def test_a_run_goes_on_with_its_own_demonstrations_alone() -> None:
    state = starts().state_dict()
    assert state is not None
    with pytest.raises(UserError, match=r"starts\.dataset gives none"):
        starts({}).load_state_dict(state)
    with pytest.raises(UserError, match="others"):
        starts().load_state_dict({**state, "dataset": "another"})
    one = starts()
    one.load_state_dict(None)  # of a run that began without
    assert one.fractions == {"push": 0.9, "pick": 0.9}
