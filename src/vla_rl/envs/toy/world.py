"""The world of the toy benchmark: a hand over a table one metre wide, two discs, a mat and a block that can be moved.

Physics in a sentence: the hand moves as it is told, shoves the block out of its way, and carries it once its gripper
has closed while touching it. Lengths are metres. A place on the table is a complex number, its origin the middle of the
table, its real part to the right, its imaginary part away from the viewer.
"""

from __future__ import annotations

import cmath
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_rl.envs.toy.tasks import initial_state_generator

STEP = 0.02
"""Metres that an action of 1 moves the hand in one step, of which there are 20 in a second."""
GRIP_STEP = 0.2
"""Share of its stroke that the gripper opens or closes in one step."""
TABLE = 0.5
"""Half the width of the table."""
HAND_RADIUS = 0.055
BLOCK_RADIUS = 0.06
DISC_RADIUS = 0.08
MAT_RADIUS = 0.11
_TOUCHING = 0.02  # a gap between hand and block that the fingers bridge
_CLOSED = 0.4  # an opening below which the gripper holds what it touches
_RELEASED = 0.6  # an opening above which it lets go
_LOWEST, _HIGHEST = 0.0, 0.1  # of the hand above the table


@dataclass
class World:
    """One episode's state."""

    task: str
    red: complex
    blue: complex
    mat: complex
    hand: complex
    block: complex
    height: float = 0.05
    opening: float = 1.0  # of the gripper, 0 closed .. 1 open
    held: bool = False
    grip: complex = 0j  # from the hand to the held block

    @staticmethod
    def initial(task: str, index: int) -> World:
        """Numbered initial state `index` of `task`: the hand near the middle, the rest around it, nothing touching."""
        rng = initial_state_generator(task, index)
        hand = complex(*rng.uniform(-0.05, 0.05, 2))
        # four places around the hand, about a quarter turn apart, in an order of their own
        angles = rng.uniform(0, 2 * np.pi) + np.pi / 2 * rng.permutation(4)
        angles += rng.uniform(-0.25, 0.25, 4)
        distances = rng.uniform(0.26, 0.34, 4)
        red, blue, mat, block = (
            hand + cmath.rect(distance, angle)
            for distance, angle in zip(distances.tolist(), angles.tolist(), strict=True)
        )
        if (
            task == "place-block"
        ):  # near the way from the hand to the mat, so that chance gets there too
            block = hand + (mat - hand) * cmath.rect(0.45, float(rng.uniform(-0.6, 0.6)))
        return World(task, red, blue, mat, hand, block)

    def step(self, action: Sequence[float]) -> bool:
        """Play one step with (right, away, up, close), each in [-1, 1]; returns whether the task is solved."""
        right, away, up, close = action
        moved = self.hand + STEP * complex(right, away)
        self.hand = complex(_clip(moved.real, -TABLE, TABLE), _clip(moved.imag, -TABLE, TABLE))
        self.height = _clip(self.height + STEP * up, _LOWEST, _HIGHEST)
        self.opening = _clip(self.opening - GRIP_STEP * close, 0.0, 1.0)
        self.held = self.held and self.opening < _RELEASED
        if self.held:
            self.block = self.hand + self.grip
        else:
            self._shove()
        if not self.held and self.opening < _CLOSED and self.gap() < _TOUCHING:
            self.held, self.grip = True, self.block - self.hand
        return self.solved()

    def _shove(self) -> None:
        """Move the block out of the hand's way."""
        away, contact = self.block - self.hand, HAND_RADIUS + BLOCK_RADIUS
        if abs(away) < contact:
            self.block = self.hand + cmath.rect(contact, cmath.phase(away))

    def gap(self) -> float:
        """Metres between hand and block."""
        return abs(self.block - self.hand) - HAND_RADIUS - BLOCK_RADIUS

    def solved(self) -> bool:
        if self.task == "grasp-block":
            return self.held
        if self.task == "place-block":
            return abs(self.block - self.mat) < MAT_RADIUS
        return abs(self.hand - self.target()) < DISC_RADIUS

    def target(self) -> complex:
        """The disc that the task speaks of."""
        return self.red if self.task == "reach-red" else self.blue

    def dense_reward(self) -> float:
        """How far the task has come, 0..1; 1 if it is solved."""
        if self.solved():
            return 1.0
        if self.task == "grasp-block":
            return 0.8 * _nearness(max(self.gap(), 0.0)) + 0.1 * (1 - self.opening)
        if self.task == "place-block":
            to_mat = abs(self.block - self.mat)
            return 0.3 * _nearness(max(self.gap(), 0.0)) + 0.6 * _nearness(to_mat)
        return 0.9 * _nearness(abs(self.hand - self.target()))


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _nearness(distance: float) -> float:
    """1 at no distance, 0 at half a metre and beyond."""
    return max(0.0, 1.0 - 2.0 * distance)
