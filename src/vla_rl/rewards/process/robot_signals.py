"""Two numbers a moment about a robot: how far its gripper is open, and how fast its hand moves.

Where they stand in proprioception and action differs from robot to robot:

    robot              position      opening                          gripper command
    metaworld_sawyer   proprio 0:3   proprio 3, 0 closed .. 1 open    action 3, a closing force: -1 opens, +1 closes
    libero_panda       proprio 0:3   fingers 6 and 7, 0 .. 0.08 m     action 6: -1 opens, +1 closes
    gymnasium          -             -                                -: nothing is known of its hand and gripper
    any other          -             -                                the action's last number, -1 opens, +1 closes

Each benchmark states it for its robot (`Benchmark.robot_layout`). Without proprioception the command stands in for the
opening and the commanded displacement for the speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from vla_rl.config.errors import UserError
from vla_rl.envs.benchmark import Benchmark
from vla_rl.envs.registry import GYMNASIUM_ROBOT, robots
from vla_rl.rewards.trajectories import Trajectory

Source = Literal["auto", "measured", "commanded"]


@dataclass(frozen=True)
class RobotSignals:
    """Where one robot's proprioception and actions hold gripper and hand."""

    name: str
    proprio_size: int  # of the layout below; 0: nothing is known about its proprioception
    position: tuple[int, ...]  # columns of proprio: the hand's position (m)
    opening: tuple[
        tuple[int, float], ...
    ]  # (column of proprio, weight): the opening is their sum ...
    stroke: float  # ... divided by this, the sum of a gripper that is fully open
    action_size: int  # 0: any
    moves: int = 3  # the first so many numbers of an action displace the hand
    action_speed: float = 1.0  # m/s of the hand while such a displacement is 1

    @property
    def unknown_body(self) -> bool:
        """Whether nothing says which numbers belong to a hand and a gripper, or whether there are any."""
        return not self.opening and not self.position and self.moves == 0

    def has_opening(self, trajectory: Trajectory) -> bool:
        return bool(self.opening) and trajectory.proprio.shape[1] > 0

    def has_position(self, trajectory: Trajectory) -> bool:
        return bool(self.position) and trajectory.proprio.shape[1] > 0

    def gripper_opening(
        self, trajectory: Trajectory, source: Source = "auto"
    ) -> Float64[np.ndarray, " T"]:
        """Opening before each turn, 0 closed .. 1 open.

        Measured where the robot's layout is known and there is proprioception, else commanded: what the action before
        the turn asked for. NaN for a robot of which no gripper is known. Raises UserError where `source` is "measured"
        and nothing was.
        """
        self.check(trajectory)
        if self.unknown_body:
            return np.full(len(trajectory), np.nan)
        measured = self.has_opening(trajectory)
        if source == "measured" and not measured:
            raise UserError(
                f"{trajectory.name}: expected proprioception with the gripper's opening, got "
                f"{trajectory.proprio.shape[1]} numbers of the robot {self.name!r}. Leave labels.gripper at auto, or "
                "take commanded."
            )
        if measured and source != "commanded":
            total = sum(
                weight * trajectory.proprio[:, column].astype(np.float64)
                for column, weight in self.opening
            )
            return np.clip(np.asarray(total) / self.stroke, 0.0, 1.0)
        asked = (1.0 - np.clip(trajectory.actions[:, -1, -1].astype(np.float64), -1.0, 1.0)) / 2
        # what a turn sees is what the one before it asked for
        return np.concatenate([asked[:1], asked[:-1]])

    def speed(self, trajectory: Trajectory) -> Float64[np.ndarray, " T"]:
        """Speed of the hand from each turn to the next, m/s; the last one goes on as fast as the one before it.

        Without positions the speed that the turn commands. Zeros for a single turn whose hand is measured, NaN for a
        robot of which no hand is known.
        """
        self.check(trajectory)
        if self.unknown_body:
            return np.full(len(trajectory), np.nan)
        if self.has_position(trajectory):
            position = trajectory.proprio[:, list(self.position)].astype(np.float64)
            moved = np.linalg.norm(np.diff(position, axis=0), axis=1) / trajectory.turn_seconds
            return np.concatenate([moved, moved[-1:]]) if len(moved) else np.zeros(1)
        asked = trajectory.actions[:, :, : self.moves].astype(np.float64)
        return self.action_speed * np.linalg.norm(np.clip(asked, -1.0, 1.0), axis=2).mean(axis=1)

    def check(self, trajectory: Trajectory) -> None:
        """UserError for numbers that are not finite, or of another size than this robot's."""
        for what, values in (
            ("proprioception", trajectory.proprio),
            ("actions", trajectory.actions),
        ):
            if not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values))[0][0])
                raise UserError(
                    f"{trajectory.name}: expected finite {what}, got {values[row].ravel().tolist()} at turn {row}. "
                    "Drop the episode, or collect it again."
                )
        size = trajectory.proprio.shape[1]
        if self.proprio_size and size not in (0, self.proprio_size):
            raise UserError(
                f"{trajectory.name}: expected proprioception of {self.proprio_size} numbers (or none), as the robot "
                f"{self.name!r} has it, got {size}. Is robot_type in the dataset's meta/info.json right?"
            )
        if self.action_size and trajectory.actions.shape[2] != self.action_size:
            raise UserError(
                f"{trajectory.name}: expected actions of {self.action_size} numbers, as the robot {self.name!r} takes "
                f"them, got {trajectory.actions.shape[2]}"
            )


def signals_of(robot: str, played: Benchmark) -> RobotSignals:
    """The signals of a benchmark's robot, which a dataset calls `robot`."""
    layout = played.robot_layout
    return RobotSignals(
        robot,
        played.proprio_dim,
        layout.position,
        layout.opening,
        layout.stroke,
        played.action_dim,
        moves=layout.moves,
        action_speed=layout.speed,
    )


def robot_signals(robot: str) -> RobotSignals:
    """The layout of the robot that a dataset calls `robot` (its robot_type).

    Of a robot that is not known only the action's conventions are assumed: displacement first, the gripper last. Its
    speeds are then in units of the action, not in m/s.
    """
    known = robots()
    if robot in known:
        return signals_of(known[robot].robot, known[robot])
    if robot == GYMNASIUM_ROBOT:  # a body of its author's: it may have a gripper, several, or none
        return RobotSignals(robot, 0, (), (), 1.0, 0, moves=0)
    return RobotSignals(robot or "unknown", 0, (), (), 1.0, 0)
