"""Curricula that look at what can be learned: known weights, and learners of which it is known what helps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vla_rl.config import ConfigError, CurriculumConfig
from vla_rl.curriculum import TaskSampler

SOLVED, RISING, DEAD = "solved", "rising", "dead"
TASKS = (SOLVED, RISING, DEAD)


def sampler(mode: Any, tasks: tuple[str, ...] = TASKS, **config: Any) -> TaskSampler:
    return TaskSampler(CurriculumConfig(mode=mode, **config), tasks, np.arange(5), 0)


def play(curriculum: TaskSampler, task: str, outcomes: str) -> None:
    for outcome in outcomes:
        curriculum.observe(task, outcome == "+")


def p(curriculum: TaskSampler) -> dict[str, float]:
    return dict(zip(curriculum.tasks, curriculum.probabilities().tolist(), strict=True))


def test_learnable_in_closed_form():
    curriculum = sampler("learnable", floor=0.1)
    play(curriculum, SOLVED, "++++")
    play(curriculum, RISING, "+-")
    play(curriculum, DEAD, "---+")
    # 0, 1/4 and 3/16, above a floor of 0.1 each
    assert p(curriculum) == pytest.approx(
        {SOLVED: 0.1, RISING: 0.1 + 0.7 * 4 / 7, DEAD: 0.1 + 0.7 * 3 / 7}
    )


@pytest.mark.parametrize("mode", ["learnable", "progress"])
def test_where_nothing_can_be_told_apart_all_tasks_are_alike(mode: str):
    curriculum = sampler(mode, window=2, slow_window=4)
    assert p(curriculum) == pytest.approx(dict.fromkeys(TASKS, 1 / 3))
    for task, outcomes in zip(TASKS, ("++++", "----", "----"), strict=True):
        play(curriculum, task, outcomes)
    assert p(curriculum) == pytest.approx(dict.fromkeys(TASKS, 1 / 3))


def test_progress_in_closed_form():
    curriculum = sampler("progress", window=2, slow_window=4, floor=0.1)
    play(curriculum, SOLVED, "++++")
    play(curriculum, RISING, "+--++")  # the last four: 1/2; the last two: 1
    play(curriculum, DEAD, "+---")  # it forgets: 1/4 and 0
    assert p(curriculum) == pytest.approx(
        {SOLVED: 0.1, RISING: 0.1 + 0.7 * 2 / 3, DEAD: 0.1 + 0.7 * 1 / 3}
    )
    metrics = curriculum.metrics()
    changes = [metrics[f"curriculum/progress/{task}"] for task in TASKS]
    assert changes == pytest.approx([0, 0.5, -0.25])


def test_a_task_that_is_not_known_yet_gets_as_much_as_any():
    curriculum = sampler("progress", window=2, slow_window=4, floor=0.0)
    play(curriculum, RISING, "--++")
    play(curriculum, SOLVED, "++++")
    play(curriculum, DEAD, "-+-")
    assert p(curriculum) == pytest.approx({SOLVED: 0.0, RISING: 0.5, DEAD: 0.5})
    assert f"curriculum/progress/{DEAD}" not in curriculum.metrics()
    play(curriculum, RISING, "++")  # it is at rest now
    assert p(curriculum) == pytest.approx({SOLVED: 0.0, RISING: 0.0, DEAD: 1.0})


WINDOW = 20
"""Episodes after which the probabilities change."""


def practised(
    mode: str, learns: Callable[[str, int], float], episodes: int = 6000, **config: Any
) -> tuple[list[dict[str, int]], TaskSampler]:
    """A learner whose success depends on how often it has practised: what it played in each tenth of its practice."""
    curriculum = sampler(mode, floor=0.05, **config)
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(TASKS, 0)
    parts = [dict.fromkeys(TASKS, 0) for _ in range(10)]
    for window in range(0, episodes, WINDOW):
        for task in rng.choice(TASKS, WINDOW, p=curriculum.probabilities()):
            curriculum.observe(task, bool(rng.random() < learns(task, counts[task])))
            counts[task] += 1
            parts[10 * window // episodes][task] += 1
    return parts, curriculum


def steady(task: str, count: int) -> float:
    """One task is solved, one never, one rises from 0.2 to 1 within 2500 episodes of its own."""
    return {SOLVED: 1.0, DEAD: 0.0}.get(task, min(1.0, 0.2 + count / 3000))


@pytest.mark.parametrize("mode", ["learnable", "progress"])
def test_practice_goes_to_the_task_that_is_learned_and_the_floor_to_the_others(mode: str):
    parts, curriculum = practised(mode, steady)
    learning = parts[3]  # of 600 episodes; all tasks are known by then
    assert learning[RISING] > 0.85 * 600
    for task in (SOLVED, DEAD):
        assert 0.02 * 600 < learning[task] < 0.09 * 600  # 0.05 is the floor
    # when it is solved as well, all are alike again
    assert p(curriculum)[RISING] == pytest.approx(1 / 3, abs=0.01)
    paper, _ = practised("paper", steady)
    assert paper[3][DEAD] > learning[DEAD] * 5, "which is what these modes are for"


@pytest.mark.parametrize("mode", ["learnable", "progress"])
def test_a_dead_task_that_wakes_up_is_found_out(mode: str):
    """The floor alone keeps looking; from the first successes on it is practised."""

    def wakes(task: str, count: int) -> float:
        if task == DEAD:
            return 0.0 if count < 250 else min(0.6, (count - 250) / 500)
        return 1.0

    parts, curriculum = practised(mode, wakes, episodes=12000)
    slept = next(i for i, part in enumerate(parts) if sum(q[DEAD] for q in parts[: i + 1]) > 250)
    assert slept < 8
    assert parts[slept + 1][DEAD] > 0.6 * 1200
    assert curriculum.successes()[TASKS.index(DEAD)] > 0.4


def test_a_task_that_is_forgotten_is_practised_again():
    def forgets(task: str, count: int) -> float:
        return 1.0 if task != SOLVED or count < 400 else max(0.2, 1 - (count - 400) / 200)

    _, curriculum = practised("progress", forgets, episodes=1400)
    assert p(curriculum)[SOLVED] > 0.8


def test_the_outcomes_of_the_slow_average_are_saved_and_others_have_none():
    curriculum = sampler("progress", window=2, slow_window=4, floor=0.0)
    play(curriculum, RISING, "--++")
    saved = json.loads(json.dumps(curriculum.state_dict()))
    again = sampler("progress", window=2, slow_window=4, floor=0.0)
    play(again, DEAD, "++--")
    again.load_state_dict(saved)
    assert p(again) == p(curriculum)
    assert "progress" not in sampler("paper").state_dict()
    again.load_state_dict(sampler("paper").state_dict())  # a run of before, in another mode
    assert p(again) == pytest.approx(dict.fromkeys(TASKS, 1 / 3))


def test_the_slow_average_is_slower():
    with pytest.raises(
        ConfigError, match=r"slow_window \(40\) must be more than curriculum.window"
    ):
        CurriculumConfig(mode="progress", window=40, slow_window=40)
    CurriculumConfig(mode="paper", window=400)
