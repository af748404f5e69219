"""Pseudo-labels: which turns of a trajectory the process reward model is taught to call progress.

`keyframe`, after VLA-RL (arXiv 2505.18719, section 3.3): cut the trajectory where the gripper's opening changes (the
milestones), find in each segment where the hand comes to rest (the key frames), and call the turns that lead there
positive. Everything else is negative: the other turns and those of failures. `mismatched.py` adds turns seen with the
instruction of another task.

`segments`, after a second source: equal parts in time. Progress rises to 1 in successes. In failures it rises half as
fast over their first half, and is a quarter from there on: .1 .2 .25 .25 .25 for five parts. Positive is what has more
than half of it.

The paper gives no thresholds; ours are fields of `LabelConfig`. Indices are turns, t = 0 .. T-1; "at turn t"
means in what is seen before it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from vla_rl.config.errors import UserError
from vla_rl.config.reward import LabelConfig
from vla_rl.rewards.process.robot_signals import RobotSignals
from vla_rl.rewards.trajectories import Trajectory

SPEED_QUANTILE = 0.9
"""A trajectory's speed scale is this quantile of its speeds: robust to a few wild steps, unlike the maximum."""
_ABOUT = 0.1
"""Speeds that differ by this share of the threshold are alike, when the slowest moment of a pause is looked for."""


@dataclass(frozen=True)
class Labels:
    """What the reward model is taught about one trajectory of T turns."""

    positive: Bool[np.ndarray, " T"]
    """The answer to "does this lead to, or has this reached, the next milestone?"; false where it is not known."""
    known: Bool[np.ndarray, " T"]
    """False: neither a positive nor a negative example."""
    progress: Float32[np.ndarray, " T"]
    """0..1: how much of the task is done once the turn is carried out."""
    milestones: Int64[np.ndarray, " S"]
    """Turns at which a segment begins, ascending, without the first segment's 0."""
    key_frames: Int64[np.ndarray, " K"]
    """Turns at which the hand has come to rest or a segment has reached its end, ascending."""

    @property
    def negative(self) -> Bool[np.ndarray, " T"]:
        return self.known & ~self.positive

    def final(self, success: bool) -> Bool[np.ndarray, " T"]:
        """The turns at the end of a success that show its goal reached, or all but reached; none of a failure.

        They are the last positive turns in a row, the last turn in any case, and none from before the last milestone.
        """
        length = len(self.positive)
        others = np.flatnonzero(~self.positive)
        first = int(others[-1]) + 1 if len(others) else 0
        first = max(first, *self.milestones.tolist()[-1:], 0)
        return success & (np.arange(length) >= min(first, length - 1))


def label(trajectory: Trajectory, config: LabelConfig, robot: RobotSignals) -> Labels:
    """Label every turn of `trajectory`.

    Raises UserError for proprioception or actions that are not finite, or not of this robot, where `config.gripper`
    asks for a measurement that the trajectory lacks, and where key frames are asked of a robot whose hand and gripper
    are not known.
    """
    if config.scheme == "segments":
        robot.check(trajectory)
        return _by_segments(trajectory, config)
    if robot.unknown_body:
        raise UserError(
            f"{trajectory.name}: key frames are read from a hand and a gripper, and nothing says where the robot "
            f"{robot.name!r} has them, if it has any: take --labels.scheme segments, which needs neither"
        )
    opening = robot.gripper_opening(trajectory, config.gripper)
    speed = robot.speed(trajectory)
    milestones = find_milestones(opening, trajectory.turn_seconds, config)
    if not trajectory.success:
        return _failure(len(trajectory), milestones, find_pauses(speed, config), config)
    keys = find_key_frames(speed, milestones, config)
    positive, known = _windows(len(trajectory), milestones, keys, trajectory.turn_seconds, config)
    progress = _progress_by_milestones(len(trajectory), milestones)
    return Labels(positive, known, progress, milestones, keys)


# --------------------------------------------------------------------------------------------------
# Milestones: the gripper


def find_milestones(
    opening: Float64[np.ndarray, " T"], turn_seconds: float, config: LabelConfig
) -> Int64[np.ndarray, " S"]:
    """The turns that are the first to see more than half of a significant change of the opening.

    The opening is followed from turning point to turning point; a reversal of less than `gripper_hysteresis` is no
    turning point, a move of less than `gripper_change` no milestone. Half-way is where noise moves the crossing
    least. Segments shorter than `min_segment` are merged with their neighbours.

    opening: 0 closed .. 1 open.
    """
    pivots = _turning_points(opening, config.gripper_hysteresis)
    found: list[tuple[int, bool]] = []  # (turn, does the gripper open)
    for start, end in itertools.pairwise(pivots):
        move = opening[end] - opening[start]
        if abs(move) >= config.gripper_change:
            passed = np.abs(opening[start : end + 1] - opening[start]) > abs(move) / 2
            found.append((start + int(np.argmax(passed)), bool(move > 0)))
    shortest = max(1, round(config.min_segment / turn_seconds))
    return _merge_short_segments(found, len(opening), shortest)


def _turning_points(values: Float64[np.ndarray, " T"], hysteresis: float) -> list[int]:
    """First index, every extreme from which the values come back by at least `hysteresis`, and the last extreme."""
    pivots = [0]
    low = high = 0  # extremes since the last turning point
    rising: bool | None = None  # not known before the first move
    for t in range(1, len(values)):
        low = t if values[t] < values[low] else low
        high = t if values[t] > values[high] else high
        if rising is not False and values[high] - values[t] >= hysteresis:
            pivots.append(high)
            rising, low = False, t
            high = t
        elif rising is not True and values[t] - values[low] >= hysteresis:
            pivots.append(low)
            rising, high = True, t
            low = t
    pivots.append(high if rising else low)
    # the first extreme may be the beginning itself
    return list(dict.fromkeys(pivots)) if rising is not None else [0]


def _merge_short_segments(
    found: list[tuple[int, bool]], length: int, shortest: int
) -> Int64[np.ndarray, " S"]:
    """Drop milestones until every segment but the last has `shortest` turns or more, the shortest first.

    Between two milestones that undo each other both go: the gripper is as it was before. Of two alike the later goes,
    and so does one that lies too near to the beginning. A grasp or a release just before the end is kept: simulators
    stop at success.
    """
    kept = [m for m in found if 0 < m[0] < length]
    while kept:
        sizes = np.diff([0, *(at for at, _ in kept)])
        i = int(np.argmin(sizes))
        if sizes[i] >= shortest:
            break
        if i == 0:
            del kept[0]
        elif kept[i - 1][1] != kept[i][1]:
            del kept[i - 1 : i + 1]
        else:
            del kept[i]
    return np.array([at for at, _ in kept], dtype=np.int64)


# --------------------------------------------------------------------------------------------------
# Key frames: the hand


def find_pauses(speed: Float64[np.ndarray, " T"], config: LabelConfig) -> Int64[np.ndarray, " K"]:
    """The turns at which the hand has come to rest after moving; resting at the very beginning is no arrival.

    Of a stretch at rest it is the first turn that is about as slow as the slowest, so that a hand which slows down,
    turns and speeds up again has arrived where it turns, and one that stays has arrived when it stops.

    speed: m/s from each turn to the next.
    """
    rest, leave = speed_thresholds(speed, config)
    about = _ABOUT * rest
    moving, arrived = False, -1  # arrived: the first turn of the present stretch at rest
    pauses: list[int] = []
    for t, now in enumerate([*speed, np.inf]):  # the end closes the last stretch
        if arrived >= 0 and now > leave:
            stretch = speed[arrived:t]
            pauses.append(arrived + int(np.argmax(stretch <= stretch.min() + about)))
            arrived = -1
        elif moving and arrived < 0 and now < rest:
            arrived = t
        moving = now > leave or (moving and arrived < 0)
    return np.array(pauses, dtype=np.int64)


def speed_thresholds(speed: Float64[np.ndarray, " T"], config: LabelConfig) -> tuple[float, float]:
    """(at rest below, under way again above), m/s.

    `near_zero_speed` and `leaving_speed` times the trajectory's scale, its 90 % quantile, never below `speed_floor`.
    """
    scale = float(np.quantile(speed, SPEED_QUANTILE))
    rest = max(config.near_zero_speed * scale, config.speed_floor)
    return rest, max(config.leaving_speed * scale, rest)


def find_key_frames(
    speed: Float64[np.ndarray, " T"], milestones: Int64[np.ndarray, " S"], config: LabelConfig
) -> Int64[np.ndarray, " K"]:
    """Pauses of a success and, where `ends_are_key`, the ends of its segments: milestones and the last turn."""
    keys = set(find_pauses(speed, config).tolist())
    if config.ends_are_key:
        keys |= {*milestones.tolist(), len(speed) - 1}
    return np.array(sorted(keys), dtype=np.int64)


# --------------------------------------------------------------------------------------------------
# Labels


def _windows(
    length: int,
    milestones: Int64[np.ndarray, " S"],
    keys: Int64[np.ndarray, " K"],
    turn_seconds: float,
    config: LabelConfig,
) -> tuple[Bool[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """(positive, known): the key frames and the turns within `window` before them, inside their segment.

    A milestone that is a key frame is the end of the segment before it.
    """
    positive, unknown = np.zeros(length, bool), np.zeros(length, bool)
    before, margin = (_turns(s, turn_seconds) for s in (config.window, config.margin))
    previous = 0
    for key in keys.tolist():
        start = max((m for m in milestones.tolist() if m < key), default=0)
        stretch = key - max(start, previous)
        first = key - min(max(before, 1), int(config.window_share * stretch))
        positive[first : key + 1] = True
        unknown[max(first - margin, start) : first] = True
        previous = key
    return positive, positive | ~unknown


def _turns(seconds: float, turn_seconds: float) -> int:
    """How many turns fit; a hair's breadth too few counts as fitting."""
    return int(seconds / turn_seconds + 1e-6)


def _progress_by_milestones(
    length: int, milestones: Int64[np.ndarray, " S"]
) -> Float32[np.ndarray, " T"]:
    """Every segment of a success is worth the same; within one, progress is linear in time and ends at 1."""
    edges = np.concatenate([[0], milestones, [length]])
    shares = np.linspace(0.0, 1.0, len(edges))
    return np.interp(np.arange(1, length + 1), edges, shares).astype(np.float32)


def _failure(
    length: int,
    milestones: Int64[np.ndarray, " S"],
    pauses: Int64[np.ndarray, " K"],
    config: LabelConfig,
) -> Labels:
    """Negative in its last `failure_share`, unknown before; nothing is known to have been achieved.

    Milestones and pauses are given as found, for people to see: they led nowhere.
    """
    known = np.arange(length) >= length - round(config.failure_share * length)
    nothing = np.zeros(length, np.float32)
    return Labels(np.zeros(length, bool), known, nothing, milestones, pauses)


def _by_segments(trajectory: Trajectory, config: LabelConfig) -> Labels:
    """Equal parts in time, one value of progress each; fewer parts where there are fewer turns."""
    length = len(trajectory)
    parts = min(config.num_segments, length)
    edges = (np.arange(parts + 1) * length) // parts
    part = np.searchsorted(edges, np.arange(length), side="right") - 1
    if trajectory.success:
        values = np.arange(1, parts + 1) / parts
    else:
        rise = parts // 2  # parts that end within the first half
        values = np.full(parts, config.failure_end)
        values[:rise] = config.failure_peak * np.arange(1, rise + 1) / parts
    progress = values[part].astype(np.float32)
    positive = (progress > config.positive_progress) & trajectory.success
    keys = edges[1:] - 1 if trajectory.success else np.zeros(0)
    return Labels(
        positive, np.ones(length, bool), progress, edges[1:-1].astype(np.int64), keys.astype(np.int64)
    )  # fmt: skip
