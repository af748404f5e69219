"""How far a run is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vla_rl.config import CurriculumConfig, ScheduleConfig
from vla_rl.curriculum import TaskSampler
from vla_rl.training.state import TrainState, share_done, share_learned


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        (ScheduleConfig(iterations=10), 0.2),
        (ScheduleConfig(iterations=10, minutes=2), 0.5),
        (ScheduleConfig(iterations=10, minutes=2, episodes=40), 0.75),
        (ScheduleConfig(iterations=0, minutes=10), 0.1),
        (ScheduleConfig(iterations=0, episodes=20), 1.0),
    ],
)
def test_progress_is_the_largest_share_of_the_limits(
    schedule: ScheduleConfig, share: float
) -> None:
    done = share_done(schedule, iterations=2, seconds=60.0, episodes=30)
    assert done == pytest.approx(share)


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        (ScheduleConfig(iterations=10, minutes=2), 0.2),
        (ScheduleConfig(iterations=10, minutes=2, episodes=40), 0.75),
        (ScheduleConfig(iterations=0, minutes=10), 0.1),
    ],
)
def test_a_learning_rate_does_not_depend_on_the_machines_speed(
    schedule: ScheduleConfig, share: float
) -> None:
    """Minutes count where a run has no other end alone."""
    assert share_learned(schedule, iterations=2, seconds=60.0, episodes=30) == pytest.approx(share)


def state_of(curriculum: TaskSampler) -> TrainState:
    nothing: Any = None
    return TrainState(nothing, nothing, nothing, nothing, curriculum, nothing, save_every=10)


def test_tasks_that_were_not_played_count_nothing_in_the_headline_and_0_in_the_score() -> None:
    """Two of four tasks were played, the easy one more often: the episodes' share is 7 of 10."""
    curriculum = TaskSampler(CurriculumConfig(), ["a", "b", "c", "d"], np.arange(3), seed=0)
    state = state_of(curriculum)
    assert state.score() == 0.0
    for task, success in [("a", True)] * 7 + [("a", False), ("b", False), ("b", False)]:
        curriculum.observe(task, success)
    metrics = curriculum.metrics() | {
        "rollout/success_rate": 0.7,
        "losses/explained_variance": 0.25,
        "speed/episodes_per_second": 3.0,
    }
    shown = state.headline(metrics)
    assert shown["success of episodes"] == 0.7
    assert shown["mean over tasks"] == pytest.approx(7 / 8 / 2, abs=1e-3)
    assert state.score() == pytest.approx(7 / 8 / 4)
    del metrics["rollout/success_rate"]  # no episode ended in this window
    assert "success of episodes" not in state.headline(metrics)
