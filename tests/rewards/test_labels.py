"""Pseudo-labels on constructed trajectories: known milestones and key frames, and what must not change them."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from vla_rl.config import ConfigError, LabelConfig, UserError
from vla_rl.rewards.process.label_files import load_labels, save_labels
from vla_rl.rewards.process.labels import find_milestones, find_pauses, label
from vla_rl.rewards.process.robot_signals import robot_signals
from vla_rl.rewards.trajectories import Trajectory

STEP = 0.1
"""Seconds a turn in these tests; thresholds below are whole numbers of it."""
CONFIG = LabelConfig(
    near_zero_speed=0.4, leaving_speed=0.5, min_segment=3 * STEP, window=2 * STEP, margin=STEP
)
GRASP_AND_RELEASE = [1.0] * 10 + [0.9, 0.2] + [0.1] * 12 + [0.3, 0.9] + [1.0] * 8


def trajectory(opening=None, speed=None, *, success: bool = True, **other) -> Trajectory:
    """A Meta-World episode whose hand moves along x at `speed` (m/s) and whose gripper is open by `opening`."""
    length = len(opening if opening is not None else speed)
    opening = np.ones(length) if opening is None else np.asarray(opening)
    speed = np.ones(length) if speed is None else np.asarray(speed)
    proprio = np.zeros((length, 4), np.float32)
    proprio[1:, 0] = np.cumsum(speed[:-1]) * STEP
    proprio[:, 3] = opening
    given = {
        "images": np.zeros((length, 4, 4, 3), np.uint8),
        "proprio": proprio,
        "actions": np.zeros((length, 1, 4), np.float32),
        "instruction": "do it",
        "task": "task",
        "initial_state": 0,
        "success": success,
        "source": "expert",
        "turn_seconds": STEP,
        "robot": "metaworld_sawyer",
    }
    return Trajectory(**{**given, **other})


def labels_of(episode: Trajectory, config: LabelConfig = CONFIG):
    return label(episode, config, robot_signals(episode.robot))


def signs(labels) -> str:
    """One sign a turn: + positive, - negative, . left out."""
    pairs = zip(labels.positive, labels.known, strict=True)
    return "".join("+" if positive else "-" if known else "." for positive, known in pairs)


# --------------------------------------------------------------------------------------------------
# Milestones


def milestones(opening, config: LabelConfig = CONFIG) -> list[int]:
    return find_milestones(np.asarray(opening, float), STEP, config).tolist()


def test_milestones_are_where_half_of_a_change_is_done():
    assert milestones(GRASP_AND_RELEASE) == [11, 25]


def test_an_opening_gripper_splits_where_a_closing_one_does():
    assert milestones(1 - np.array(GRASP_AND_RELEASE)) == [11, 25]


def test_a_constant_gripper_has_no_milestone():
    assert milestones([0.4] * 30) == []


@given(noise=hnp.arrays(float, len(GRASP_AND_RELEASE), elements=st.floats(-0.04, 0.04)))
def test_noise_below_the_hysteresis_moves_no_milestone(noise):
    assert milestones(np.array(GRASP_AND_RELEASE) + noise) == [11, 25]


def test_a_change_that_reverses_a_little_on_its_way_is_one_change():
    # 0.06 back, less than the hysteresis: one closing from 1 to 0.1, half-way at 0.55
    assert milestones([1.0] * 6 + [0.8, 0.86, 0.6, 0.4, 0.1] + [0.1] * 6) == [9]


def test_moves_smaller_than_the_threshold_are_none():
    stroke = [1.0] * 6 + [0.78] * 6 + [1.0] * 6
    assert milestones(stroke) == []
    assert milestones(stroke, replace(CONFIG, gripper_change=0.2)) == [6, 12]


def test_a_gripper_that_closes_for_a_moment_does_not_count():
    assert milestones([1.0] * 10 + [0.0] * 2 + [1.0] * 10) == []
    assert milestones([1.0] * 10 + [0.0] * 3 + [1.0] * 10) == [10, 13]


def test_of_two_closings_in_a_row_the_later_one_goes_if_they_are_too_near():
    # half open in between, and 0.15 back: too little for a milestone, enough for a turning point
    halting = [1.0] * 6 + [0.5, 0.65, 0.0] + [0.0] * 8
    assert milestones(halting) == [6]
    assert milestones(halting, replace(CONFIG, min_segment=STEP)) == [6, 8]


@pytest.mark.parametrize("at", [1, 2])
def test_a_change_at_the_beginning_makes_no_segment_of_a_decision_or_two(at: int):
    opening = [1.0] * at + [0.0] * (20 - at)
    assert milestones(opening) == []


@pytest.mark.parametrize("at", [3, 17, 18, 19])
def test_a_segment_may_be_as_long_as_the_shortest_and_the_last_one_shorter(at: int):
    assert milestones([1.0] * at + [0.0] * (20 - at)) == [at]


@given(opening=hnp.arrays(float, st.integers(1, 40), elements=st.floats(0, 1)))
def test_no_segment_is_shorter_than_asked_for(opening):
    found = milestones(opening)
    assert found == sorted(set(found))
    assert not found or np.diff([0, *found]).min() >= 3
    assert all(at < len(opening) for at in found)


# --------------------------------------------------------------------------------------------------
# Pauses


def pauses(speed, config: LabelConfig = CONFIG) -> list[int]:
    return find_pauses(np.asarray(speed, float), config).tolist()


def test_a_pause_begins_where_the_hand_stops():
    assert pauses([1, 1, 1, 0, 0, 0, 1, 1, 0, 0]) == [3, 8]


def test_resting_before_the_first_move_is_no_arrival():
    assert pauses([0, 0, 0, 1, 1, 1, 1]) == []


def test_a_hand_that_only_slows_down_has_arrived_where_it_is_slowest():
    # at rest below 0.4 of the scale
    assert pauses([1, 1, 0.7, 0.38, 0.2, 0.37, 0.8, 1, 1]) == [4]


def test_a_speed_between_the_thresholds_starts_no_second_pause():
    # 0.45 lies between at rest (0.4) and moving (0.5)
    assert pauses([1, 1, 1, 0.1, 0.45, 0.1, 0.45, 0.1, 1, 1]) == [3]
    assert pauses([1, 1, 1, 0.1, 0.6, 0.1, 0.6, 0.1, 1, 1]) == [3, 5, 7]


def test_a_slow_trajectory_rests_below_the_floor():
    creeping = np.array([1, 1, 1, 0.6, 1, 1, 1.0])
    assert pauses(0.015 * creeping) == [3]  # 9 mm/s, under the floor of 10
    assert pauses(0.025 * creeping) == []  # 15 mm/s, and no less than 0.4 of the scale


def test_a_hand_that_never_moves_never_arrives():
    assert pauses(np.zeros(12)) == []


# --------------------------------------------------------------------------------------------------
# Labels of the keyframe scheme


def test_decisions_that_lead_to_a_key_frame_are_positive():
    #                     0  1  2  3  4  5  6  7  8  9 10 11 12
    speed = np.array([1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1.0])
    labels = labels_of(trajectory(speed=speed))
    assert labels.key_frames.tolist() == [5, 12]
    assert signs(labels) == "--.+++---.+++"
    assert labels.milestones.tolist() == []
    np.testing.assert_allclose(labels.progress, np.arange(1, 14) / 13)


def test_a_milestone_is_a_key_frame_and_ends_its_window():
    labels = labels_of(trajectory(GRASP_AND_RELEASE))
    assert labels.milestones.tolist() == [11, 25]
    assert labels.key_frames.tolist() == [11, 25, 33]
    assert signs(labels) == "--------.+++" + "----------.+++" + "----.+++"


def test_windows_stay_in_their_segment():
    long = replace(CONFIG, window=100 * STEP, window_share=1.0)
    speed = np.ones(34)
    speed[13] = 0  # a pause just after the grasp
    wide = replace(CONFIG, window=5 * STEP, window_share=1.0)
    labels = labels_of(trajectory(GRASP_AND_RELEASE, speed), wide)
    assert labels.key_frames.tolist() == [11, 13, 25, 33]
    assert signs(labels)[:14] == "-----.++++++" + "++"
    assert signs(labels_of(trajectory(GRASP_AND_RELEASE), long)) == "+" * 34


def test_margins_stay_in_their_segment_too():
    speed = np.ones(34)
    speed[13] = 0  # two turns after the grasp, which is no key frame here
    letter = replace(CONFIG, ends_are_key=False, margin=2 * STEP, window_share=1.0)
    assert signs(labels_of(trajectory(GRASP_AND_RELEASE, speed), letter))[8:16] == "---+++--"


def test_windows_take_no_more_than_their_share_of_the_way():
    speed = np.ones(34)
    speed[15] = 0  # four turns after the grasp
    wide = replace(CONFIG, window=100 * STEP, margin=0.0)
    # halves of 11, 4, 10 and 8 turns, and the key frames themselves
    expected = "------++++++" + "-+++" + "----++++++" + "---+++++"
    assert signs(labels_of(trajectory(GRASP_AND_RELEASE, speed), wide)) == expected


def test_progress_gives_every_segment_the_same_share():
    progress = labels_of(trajectory(GRASP_AND_RELEASE)).progress
    # the turn before a milestone has carried its segment out
    np.testing.assert_allclose(progress[[10, 24, 33]], [1 / 3, 2 / 3, 1], rtol=1e-6)
    assert (np.diff(progress) > 0).all()


def test_the_letter_of_the_paper_knows_pauses_only():
    speed = np.array([1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1.0])
    labels = labels_of(trajectory(speed=speed), replace(CONFIG, ends_are_key=False))
    assert labels.key_frames.tolist() == [5]
    assert signs(labels) == "--.+++-------"


def test_failures_are_negative_whatever_they_do():
    speed = [1, 1, 1, 0, 0, 0, 1, 1, 1, 1.0]
    failed = trajectory(speed=speed, success=False)
    assert signs(labels_of(failed)) == "-" * 10
    assert not labels_of(failed).progress.any()
    assert signs(labels_of(failed, replace(CONFIG, failure_share=0.4))) == "......----"


def test_times_are_seconds_whatever_the_action_rate():
    episode = trajectory(GRASP_AND_RELEASE)
    twice = replace(CONFIG, window=4 * STEP, margin=2 * STEP, min_segment=6 * STEP)
    slow = replace(episode, turn_seconds=2 * STEP)
    assert signs(labels_of(slow, twice)) == signs(labels_of(episode))


@pytest.mark.parametrize("scheme", ["keyframe", "segments"])
@pytest.mark.parametrize("success", [True, False])
def test_a_single_decision_can_be_labelled(scheme, success: bool):
    labels = labels_of(trajectory([1.0], success=success), replace(CONFIG, scheme=scheme))
    assert labels.milestones.tolist() == []
    assert signs(labels) == ("+" if success else "-")
    assert labels.key_frames.tolist() == ([0] if success else [])
    assert (labels.progress == 1) == success


# --------------------------------------------------------------------------------------------------
# Labels of the segments scheme

SEGMENTS = replace(CONFIG, scheme="segments")


def test_segments_of_a_success_rise_to_one():
    labels = labels_of(trajectory([1.0] * 10), SEGMENTS)
    np.testing.assert_allclose(labels.progress, np.repeat([0.2, 0.4, 0.6, 0.8, 1.0], 2), rtol=1e-6)
    assert signs(labels) == "----++++++"
    assert labels.milestones.tolist() == [2, 4, 6, 8]
    assert labels.key_frames.tolist() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (5, [0.1, 0.2, 0.25, 0.25, 0.25]),  # the source's
        (4, [0.125, 0.25, 0.25, 0.25]),
        (2, [0.25, 0.25]),
        (1, [0.25]),
    ],
)
def test_segments_of_a_failure_rise_half_as_fast_and_stay_at_a_quarter(parts, expected):
    labels = labels_of(
        trajectory([1.0] * 2 * parts, success=False), replace(SEGMENTS, num_segments=parts)
    )
    np.testing.assert_allclose(labels.progress, np.repeat(expected, 2), rtol=1e-6)
    assert signs(labels) == "-" * 2 * parts


def test_fewer_decisions_than_segments_make_fewer_segments():
    labels = labels_of(trajectory([1.0] * 3), SEGMENTS)
    np.testing.assert_allclose(labels.progress, [1 / 3, 2 / 3, 1], rtol=1e-6)


# --------------------------------------------------------------------------------------------------
# What labels do not depend on

episodes = st.integers(1, 40).flatmap(
    lambda length: st.tuples(
        hnp.arrays(float, length, elements=st.floats(0, 1)),
        hnp.arrays(float, length, elements=st.sampled_from([0.0, 0.125, 0.5, 1.0, 2.0])),
        st.booleans(),
    )
)


def same(first, second) -> None:
    for name in ("positive", "known", "progress", "milestones", "key_frames"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


def placed(episode: Trajectory, change) -> Trajectory:
    """The episode with its positions (m) changed."""
    proprio = episode.proprio.copy()
    proprio[:, :3] = change(proprio[:, :3])
    return replace(episode, proprio=proprio)


@settings(max_examples=50)
@given(drawn=episodes)
def test_labels_do_not_depend_on_where_the_robot_stands_or_which_way_it_faces(drawn):
    opening, speed, success = drawn
    episode = trajectory(opening, speed, success=success)
    expected = labels_of(episode)
    same(expected, labels_of(placed(episode, lambda p: p * [-1, 1, -1])))
    same(expected, labels_of(placed(episode, lambda p: p[:, [2, 0, 1]])))


@settings(max_examples=50)
@given(drawn=episodes, factor=st.sampled_from([0.25, 2.0, 1024.0]))
def test_without_a_floor_the_unit_of_length_does_not_matter(drawn, factor: float):
    opening, speed, success = drawn
    episode = trajectory(opening, speed, success=success)
    relative = replace(CONFIG, speed_floor=0.0)
    same(labels_of(episode, relative), labels_of(placed(episode, lambda p: p * factor), relative))


def test_an_offset_of_the_position_changes_nothing():
    speed = np.array([1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1.0])
    episode = trajectory(speed=speed)
    same(labels_of(episode), labels_of(placed(episode, lambda p: p + np.array([0.3, -7.0, 1.1]))))


@settings(max_examples=50)
@given(drawn=episodes, scheme=st.sampled_from(["keyframe", "segments"]))
def test_every_trajectory_gets_labels_that_agree_with_themselves(drawn, scheme):
    opening, speed, success = drawn
    episode = trajectory(opening, speed, success=success)
    labels = labels_of(episode, replace(CONFIG, scheme=scheme))
    assert {len(labels.positive), len(labels.known), len(labels.progress)} == {len(episode)}
    assert not (labels.positive & ~labels.known).any()
    assert not (labels.positive & labels.negative).any()
    assert labels.progress.min() >= 0
    assert labels.progress.max() <= 1
    for found in (labels.milestones, labels.key_frames):
        assert found.tolist() == sorted(set(found.tolist()))
        assert ((found >= 0) & (found < len(episode))).all()
    if success:
        assert labels.progress[-1] == 1
        assert (np.diff(labels.progress) >= 0).all()
        assert labels.positive[-1]
        if scheme == "keyframe":
            assert labels.positive[labels.key_frames].all()
    else:
        assert not labels.positive.any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gripper_change", 1.5), ("gripper_hysteresis", 0.0), ("gripper_hysteresis", 0.3), ("near_zero_speed", -0.1),
        ("leaving_speed", 0.1), ("speed_floor", -1.0), ("window", 0.0), ("margin", -0.1), ("num_segments", 0),
        ("failure_share", 2.0), ("min_segment", -1.0),
    ],
)  # fmt: skip
def test_thresholds_out_of_range_are_an_error(field: str, value: float):
    with pytest.raises(ConfigError, match=f"labels.{field}"):
        LabelConfig(**{field: value})


# --------------------------------------------------------------------------------------------------
# On disk


def test_labels_come_back_from_their_files_as_they_were(tmp_path):
    given = [
        trajectory(GRASP_AND_RELEASE),
        trajectory([1.0]),
        trajectory(speed=[1, 1, 0, 1, 1.0], success=False),
    ]
    labels = [labels_of(episode) for episode in given]
    save_labels(tmp_path / "labels", given, labels, CONFIG, "runs/demos")
    config, loaded = load_labels(tmp_path / "labels")
    assert config == CONFIG
    assert len(loaded) == 3
    for before, after in zip(labels, loaded, strict=True):
        same(before, after)
    with pytest.raises(UserError, match="exists already"):
        save_labels(tmp_path / "labels", given, labels, CONFIG, "runs/demos")


def test_damaged_label_files_are_an_error(tmp_path):
    episode = trajectory(GRASP_AND_RELEASE)
    save_labels(tmp_path / "labels", [episode], [labels_of(episode)], CONFIG, "")
    table = tmp_path / "labels" / "labels.parquet"
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        load_labels(tmp_path / "labels")
    with pytest.raises(UserError, match=r"labels\.json"):
        load_labels(tmp_path / "nothing")
