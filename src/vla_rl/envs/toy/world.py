"""The world of the toy benchmark: a hand over a table one metre wide, with a disc, or a block and perhaps a mat.

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

STEP = 0.01
"""Metres that an action of 1 moves the hand in one step, of which there are 20 in a second."""
GRIP_STEP = 0.1
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
    """One episode's state. What a task does not need is not on the table."""

    task: str
    hand: complex
    disc: complex | None = None
    block: complex | None = None
    mat: complex | None = None
    height: float = 0.05
    opening: float = 1.0  # of the gripper, 0 closed .. 1 open
    held: bool = False
    grip: complex = 0j  # from the hand to the held block

    @staticmethod
    def initial(task: str, index: int) -> World:
        """Numbered initial state `index` of `task`: the hand near the middle, the rest around it, nothing touching."""
        rng = initial_state_generator(task, index)
        hand = complex(*rng.uniform(-0.05, 0.05, 2))
        angle, distance, aside = (
            rng.uniform(0, 2 * np.pi),
            rng.uniform(0.26, 0.34),
            rng.uniform(-0.6, 0.6),
        )
        place = hand + cmath.rect(float(distance), float(angle))
        if task == "grasp-block":
            return World(task, hand, block=place)
        if (
            task == "place-block"
        ):  # the block near the way from the hand to the mat, so that chance gets there too
            return World(
                task, hand, block=hand + (place - hand) * cmath.rect(0.45, float(aside)), mat=place
            )
        return World(task, hand, disc=place)

    def step(self, action: Sequence[float]) -> bool:
        """Play one step with (right, away, up, close), each in [-1, 1]; returns whether the task is solved."""
        right, away, up, close = action
        moved = self.hand + STEP * complex(right, away)
        self.hand = complex(_clip(moved.real, -TABLE, TABLE), _clip(moved.imag, -TABLE, TABLE))
        self.height = _clip(self.height + STEP * up, _LOWEST, _HIGHEST)
        self.opening = _clip(self.opening - GRIP_STEP * close, 0.0, 1.0)
        if self.block is not None:
            self._move(self.block)
        return self.solved()

    def _move(self, block: complex) -> None:
        """Carry the block, or shove it out of the hand's way and take hold of it."""
        self.held = self.held and self.opening < _RELEASED
        contact = HAND_RADIUS + BLOCK_RADIUS
        if self.held:
            block = self.hand + self.grip
        elif abs(block - self.hand) < contact:
            block = self.hand + cmath.rect(contact, cmath.phase(block - self.hand))
        self.block = block
        if not self.held and self.opening < _CLOSED and self.gap() < _TOUCHING:
            self.held, self.grip = True, block - self.hand

    def gap(self) -> float:
        """Metres between hand and block."""
        assert self.block is not None
        return abs(self.block - self.hand) - HAND_RADIUS - BLOCK_RADIUS

    def solved(self) -> bool:
        if self.disc is not None:
            return abs(self.hand - self.disc) < DISC_RADIUS
        if self.mat is None:
            return self.held
        assert self.block is not None
        return abs(self.block - self.mat) < MAT_RADIUS

    def dense_reward(self) -> float:
        """How far the task has come, 0..1; 1 if it is solved."""
        if self.solved():
            return 1.0
        if self.disc is not None:
            return 0.9 * _nearness(abs(self.hand - self.disc))
        if self.mat is None:
            return 0.8 * _nearness(self.gap()) + 0.1 * (1 - self.opening)
        assert self.block is not None
        return 0.3 * _nearness(self.gap()) + 0.6 * _nearness(abs(self.block - self.mat))


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _nearness(distance: float) -> float:
    """1 at no distance, 0 at half a metre and beyond."""
    return min(max(1.0 - 2.0 * distance, 0.0), 1.0)
