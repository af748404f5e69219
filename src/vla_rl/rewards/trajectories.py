"""Whole episodes as the reward model's data, and how they are cut out of rollout windows.

    cutter = EpisodeCutter(policy, env)                   # practice: episodes run on across window edges
    trajectories = cutter.add(rollout)

Datasets of them are read and written by trajectory_files.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import UserError
from vla_rl.envs.registry import benchmark, settings_of, turn_seconds
from vla_rl.policies.policy import DecodesActions, decoded
from vla_rl.types import Rollout

Origin = Literal["expert", "policy"]


@dataclass(frozen=True)
class Trajectory:
    """One episode as the reward model's data: T turns, what was seen before each, and how it ended.

    UserError if the parts do not fit together, or if there is no turn.
    """

    images: UInt8[np.ndarray, "T H W 3"]  # before each turn
    proprio: Float32[np.ndarray, "T P"]  # P may be 0
    actions: Float32[np.ndarray, "T C A"]  # the chunk of each turn, simulator units in [-1, 1]
    instruction: str
    task: str
    initial_state: int  # -1: not known
    success: bool
    source: Origin
    final_image: UInt8[np.ndarray, "H W 3"] | None = (
        None  # after the last turn; not stored in datasets
    )
    turn_seconds: float = 0.0625  # robot time from one turn to the next
    robot: str = ""  # as datasets name it (robot_type); says what proprio and actions hold

    def __post_init__(self) -> None:
        shapes = self.images.shape, self.proprio.shape, self.actions.shape
        lengths = {len(self.images), len(self.proprio), len(self.actions)}
        if [len(shape) for shape in shapes] != [4, 2, 3] or len(lengths) != 1:
            raise UserError(
                f"{self.name}: expected images (T, H, W, 3), proprio (T, P) and actions (T, C, A) of one length, got "
                f"{shapes[0]}, {shapes[1]} and {shapes[2]}"
            )
        if 0 in lengths:
            raise UserError(f"{self.name}: expected at least one turn, got none")
        if not self.turn_seconds > 0:
            raise UserError(
                f"{self.name}: expected a positive time between turns, got {self.turn_seconds}"
            )

    def __len__(self) -> int:
        """T, the number of turns."""
        return len(self.actions)

    @property
    def name(self) -> str:
        """For people: the task and its initial state."""
        return f"{self.task} (initial state {self.initial_state}, {self.source})"


# --------------------------------------------------------------------------------------------------
# From rollout windows


@dataclass
class _Piece:
    """Turns of one running episode that lie in one window."""

    images: UInt8[np.ndarray, "t H W 3"]
    proprio: Float32[np.ndarray, "t P"]
    tokens: Int64[np.ndarray, "t K"]


class EpisodeCutter:
    """Cuts consecutive rollout windows into whole episodes; those still running wait for the next window.

    Episodes whose beginning was not seen (the first window of a resumed run) or that were lost with their simulator are
    left out.
    """

    def __init__(self, policy: DecodesActions, env: EnvConfig) -> None:
        self._policy, self._env = policy, env
        self._running: dict[int, list[_Piece]] = {}  # slot -> its episode, as far as it was seen

    def add(self, rollout: Rollout) -> list[Trajectory]:
        """The episodes that ended in `rollout`, ordered by when they did. It must follow the last one given."""
        turns, slots = rollout.rewards.shape
        ended = rollout.terminated | rollout.truncated
        finished: list[tuple[int, int, Trajectory]] = []
        for slot in range(slots):
            start = 0
            for turn in range(turns):
                if rollout.time_fraction[turn, slot] == 0:  # an episode begins here
                    self._running[slot], start = [], turn
                if not rollout.valid[turn, slot]:
                    self._running.pop(slot, None)
                elif ended[turn, slot] and slot in self._running:
                    self._extend(rollout, slot, start, turn + 1)
                    finished.append((turn, slot, self._close(rollout, slot, turn)))
            if slot in self._running:
                self._extend(rollout, slot, start, turns)
        return [trajectory for _, _, trajectory in sorted(finished, key=lambda found: found[:2])]

    def _extend(self, rollout: Rollout, slot: int, start: int, stop: int) -> None:
        rows = slice(start, stop)
        # copies: a view would keep the whole window's images in memory
        piece = _Piece(
            rollout.images[rows, slot].copy(),
            rollout.proprio[rows, slot].copy(),
            rollout.tokens[rows, slot].copy(),
        )
        self._running[slot].append(piece)

    def _close(self, rollout: Rollout, slot: int, turn: int) -> Trajectory:
        pieces = self._running.pop(slot)
        task = int(rollout.task_ids[turn, slot])
        name, instruction = rollout.tasks[task], rollout.instructions[task]
        played = benchmark(settings_of(self._env, name).suite)
        tokens = torch.from_numpy(np.concatenate([piece.tokens for piece in pieces]))
        actions = decoded(self._policy, tokens, [instruction] * len(tokens))
        proprio = np.concatenate([piece.proprio for piece in pieces])
        return Trajectory(
            images=np.concatenate([piece.images for piece in pieces]),
            proprio=proprio[:, : played.proprio_dim],
            actions=actions[:, :, : played.action_dim],
            instruction=instruction,
            task=name,
            initial_state=int(rollout.initial_states[turn, slot]),
            success=bool(rollout.terminated[turn, slot]),
            source="policy",
            turn_seconds=turn_seconds(self._env, name, self._env.action_chunk),
            robot=played.robot,
        )


def trajectories_of(
    rollouts: Sequence[Rollout], policy: DecodesActions, env: EnvConfig
) -> list[Trajectory]:
    """The whole episodes in consecutive windows, those across their edges among them."""
    cutter = EpisodeCutter(policy, env)
    return [trajectory for rollout in rollouts for trajectory in cutter.add(rollout)]
