"""Examples of the reward model: laid out as labelled, and never across the edge of an episode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from builders.trajectories import TASKS, trajectory
from vla_rl.config import LabelConfig, UserError
from vla_rl.rewards.process.examples import build_examples, require_both_classes

SEGMENTS = LabelConfig(scheme="segments")


def test_examples_follow_the_labels_and_never_look_into_another_episode():
    made = [trajectory(0, True), trajectory(1, False, length=4)]
    examples = build_examples(made, SEGMENTS, history=3)
    assert examples.positive[:6].any()
    assert not examples.positive[6:].any()
    assert examples.episode.tolist() == [0] * 6 + [1] * 4
    assert examples.sequence[6].tolist() == [6, 6, 6]
    assert examples.sequence[5].tolist() == [3, 4, 5]
    np.testing.assert_array_equal(examples.images_seen(np.array([5]))[0], made[0].images[3:6])
    assert examples.instructions_of(np.array([0, 9])) == [TASKS["red-task"]] * 2


def test_histories_are_as_long_in_time_whatever_the_rate():
    slow = trajectory(0, True)
    fast = replace(trajectory(1, True), turn_seconds=slow.turn_seconds / 2)
    examples = build_examples([slow, fast], SEGMENTS, history=2)
    assert examples.sequence[3].tolist() == [2, 3]
    assert examples.sequence[6 + 3].tolist() == [6 + 1, 6 + 3]


def test_trajectories_that_differ_are_refused():
    with pytest.raises(UserError, match=r"images of one size, got \(32, 32\) .* and \(16, 16\)"):
        build_examples([trajectory(0, True), trajectory(1, True, size=16)], SEGMENTS)
    pair = [trajectory(0, True), trajectory(1, True, chunk=2)]
    assert build_examples(pair, SEGMENTS).actions.shape == (12, 1, 4)
    with pytest.raises(UserError, match=r"set reward\.action_chunk"):
        build_examples(pair, SEGMENTS, reads_actions=True)
    with pytest.raises(UserError, match="no episode"):
        build_examples([], SEGMENTS)


def test_one_class_is_refused():
    for value, word in ((True, "positive"), (False, "negative")):
        with pytest.raises(UserError, match=f"all 3 are {word}"):
            require_both_classes(np.full(3, value), "data")
