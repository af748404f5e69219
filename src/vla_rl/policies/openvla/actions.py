"""What the tokens of a turn mean: the numbers of its actions, in the units of the robot that plays them.

Where several suites are played by one policy, each instruction has the statistics of its suite. A turn always has
K = C A tokens, A the longest action of any of them; of each action a shorter robot takes the first numbers. The rest of
its tokens are fixed: they are no decision, have log-prob 0 and entropy 0, and no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.config.policy import PolicyConfig, SuiteActions
from vla_rl.policies.action_tokens import (
    ActionStatistics,
    ActionTokenizer,
    gripper_from_libero,
    gripper_to_libero,
    select_statistics,
)
from vla_rl.policies.fast.actions import FastActions
from vla_rl.policies.openvla.config_files import Checkpoint
from vla_rl.policies.openvla.decoding import FixedTokens, after_end
from vla_rl.policies.suite_statistics import datasets_of_suites

Actions = Float32[np.ndarray, "N C A"] | Float64[np.ndarray, "N C A"]


class TurnActions:
    """Tokens to actions and back, for one checkpoint that writes a token for each number."""

    end_token = None
    """There is none: every turn has K tokens."""

    def __init__(
        self,
        tokenizer: ActionTokenizer,
        statistics: ActionStatistics,
        gripper: Literal["as-is", "openvla"],
        chunk: int,
        size: int,
        margin: float = 0.0,
    ) -> None:
        """statistics: of whatever instruction has none of its own. size: A. margin: see `unnormalize`."""
        self._margin = margin
        self._tokenizer, self._statistics = tokenizer, statistics
        self._gripper: Literal["as-is", "openvla"] = gripper
        self._chunk, self._size = chunk, size
        self.num_tokens = chunk * size
        self._by_instruction: dict[str, ActionStatistics] = {}
        self._played = size
        self.fixed_token = tokenizer.bins // 2
        """What stands where a shorter robot has no number."""

    @property
    def gripper(self) -> Literal["as-is", "openvla"]:
        """What the last number of an action says, see `ModelConfig.gripper`."""
        return self._gripper

    def play(self, statistics: Mapping[str, ActionStatistics]) -> None:
        """Play each of these instructions with its own statistics from now on."""
        self._by_instruction = dict(statistics)
        sizes = {one.q01.size for one in statistics.values()}
        self._played = max(sizes, default=self._size)

    @property
    def played_size(self) -> int:
        """Numbers of the longest action that is played."""
        return self._played

    @property
    def has_fixed(self) -> bool:
        """Whether some turns have tokens that are no decision."""
        return any(one.q01.size != self._size for one in self._by_instruction.values())

    def free(self, instructions: Sequence[str]) -> Bool[np.ndarray, "N K"] | None:
        """Which tokens are decisions; None where all are."""
        sizes = [self._of(text).q01.size for text in instructions]
        if all(size == self._size for size in sizes):
            return None
        one = np.arange(self._size) < np.array(sizes)[:, None]
        return np.tile(one, (1, self._chunk))

    def decode(
        self, tokens: Int64[np.ndarray, "N K"], instructions: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "N C A"]:
        """Tokens to actions in the simulator's units; A is the longest that is played, a shorter one ends in zeros."""
        values = self._tokenizer.decode(tokens).reshape(len(tokens), self._chunk, self._size)
        if instructions is None:
            return self._to_robot(values, self._statistics).astype(np.float32)
        actions = np.zeros((len(tokens), self._chunk, self._played), np.float32)
        for statistics, rows in self._alike(instructions):
            size = statistics.q01.size
            actions[rows, :, :size] = self._to_robot(values[rows, :, :size], statistics)
        return actions

    def encode(
        self, actions: Actions, instructions: Sequence[str] | None = None
    ) -> Int64[np.ndarray, "N K"]:
        """The inverse of `decode` up to the bins' width. UserError if chunk or action size is not the policy's."""
        size = self._size if instructions is None else self._played
        if actions.shape[1:] != (self._chunk, size):
            raise UserError(
                f"The policy plays {self._chunk} actions of size {size} per turn, got actions of "
                f"shape {tuple(actions.shape)}: check action_chunk and the dataset's action size"
            )
        if instructions is None:
            bins = self._from_robot(actions, self._statistics)
            return bins.reshape(len(bins), -1)
        bins = np.full((len(actions), self._chunk, self._size), self.fixed_token, np.int64)
        for statistics, rows in self._alike(instructions):
            size = statistics.q01.size
            bins[rows, :, :size] = self._from_robot(actions[rows, :, :size], statistics)
        return bins.reshape(len(bins), -1)

    def _of(self, instruction: str) -> ActionStatistics:
        return self._by_instruction.get(instruction, self._statistics)

    def _alike(
        self, instructions: Sequence[str]
    ) -> list[tuple[ActionStatistics, Int64[np.ndarray, " n"]]]:
        """The rows that have the same statistics."""
        rows: dict[int, list[int]] = {}
        known: dict[int, ActionStatistics] = {}
        for row, text in enumerate(instructions):
            statistics = self._of(text)
            known[id(statistics)] = statistics
            rows.setdefault(id(statistics), []).append(row)
        return [(known[key], np.array(own, np.int64)) for key, own in rows.items()]

    def _to_robot(
        self, values: Float64[np.ndarray, "N C A"], statistics: ActionStatistics
    ) -> Float64[np.ndarray, "N C A"]:
        actions = statistics.unnormalize(values, self._margin)
        return gripper_to_libero(actions) if self._gripper == "openvla" else actions

    def _from_robot(
        self, actions: Actions, statistics: ActionStatistics
    ) -> Int64[np.ndarray, "N C A"]:
        if self._gripper == "openvla":
            actions = gripper_from_libero(actions)
        return self._tokenizer.encode(statistics.normalize(actions))


def turn_actions_of(
    description: Checkpoint, tokenizer: ActionTokenizer, statistics: ActionStatistics, margin: float
) -> TurnActions | FastActions:
    """What the tokens of a checkpoint mean; of one whose turns are as long as they need to be as well."""
    gripper = description.model.gripper
    if description.fast is not None:
        return FastActions(description.fast, statistics, gripper, margin)
    chunk, size = description.action_chunk, description.action_dim
    return TurnActions(tokenizer, statistics, gripper, chunk, size, margin)


class ActsInTurns:
    """The part of a policy that says what its tokens mean: see `Policy`, `PlaysSuites` and `AnswersAtLength`."""

    description: Checkpoint
    config: PolicyConfig
    unnorm_key: str
    turn_actions: TurnActions | FastActions

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    @property
    def num_tokens(self) -> int:
        """K, action tokens of a turn at most."""
        return self.turn_actions.num_tokens

    def decided(self, tokens: Int64[Tensor, "N K"]) -> Bool[np.ndarray, "N K"] | None:
        """Which tokens are decisions, where turns end with a token of their own, see `AnswersAtLength`."""
        if not isinstance(self.turn_actions, FastActions):
            return None
        return self.turn_actions.decided(tokens.detach().cpu().numpy())

    def meant(self, tokens: Int64[Tensor, "N K"]) -> Bool[np.ndarray, " N"] | None:
        """Which answers mean a chunk of actions, see `AnswersAtLength`."""
        if not isinstance(self.turn_actions, FastActions):
            return None
        return self.turn_actions.meant(tokens.detach().cpu().numpy())

    def _fixed(
        self, instructions: Sequence[str], tokens: Int64[Tensor, "N K"] | None = None
    ) -> FixedTokens | None:
        """The tokens that are no decisions; None where there are none. Of given tokens, those behind an end as well."""
        free = self.turn_actions.free(instructions)
        if free is not None:
            return FixedTokens(
                torch.from_numpy(~free).to(self.device), self.turn_actions.fixed_token
            )
        end = self.turn_actions.end_token
        return None if tokens is None else after_end(tokens.to(self.device), end)

    def decode_actions(self, tokens: Int64[Tensor, "N K"]) -> Float32[np.ndarray, "N C A"]:
        """Tokens to un-normalised actions in the simulator's units."""
        return self.turn_actions.decode(tokens.detach().cpu().numpy())

    def encode_actions(
        self, actions: Float32[np.ndarray, "N C A"] | Float64[np.ndarray, "N C A"]
    ) -> Int64[Tensor, "N K"]:
        """The inverse of `decode_actions` up to the bins' width. UserError if chunk or action size is another."""
        return torch.from_numpy(self.turn_actions.encode(actions))

    def play_suites(self, wanted: Mapping[str, SuiteActions]) -> int:
        """Play each instruction with its suite's statistics, see `PlaysSuites`."""
        asked = self.unnorm_key if self.config.unnorm_key else ""
        self.description, by_instruction = of_suites(self.description, wanted, asked)
        self.turn_actions.play(by_instruction)
        return self.turn_actions.played_size

    @property
    def plays_suites(self) -> bool:
        """Whether it has several suites' statistics."""
        return bool(self.description.unnorm_keys)

    def decode_actions_for(
        self, tokens: Int64[Tensor, "N K"], instructions: Sequence[str]
    ) -> Float32[np.ndarray, "N C A"]:
        return self.turn_actions.decode(tokens.detach().cpu().numpy(), instructions)

    def encode_actions_for(
        self,
        actions: Float32[np.ndarray, "N C A"] | Float64[np.ndarray, "N C A"],
        instructions: Sequence[str],
    ) -> Int64[Tensor, "N K"]:
        return torch.from_numpy(self.turn_actions.encode(actions, instructions))


def of_suites(
    description: Checkpoint, wanted: Mapping[str, SuiteActions], asked: str
) -> tuple[Checkpoint, dict[str, ActionStatistics]]:
    """The description of a policy that plays several suites, and the statistics of each instruction.

    asked: the user's own choice of a dataset, which then is for all. UserError where a suite's are missing, or are of
    another robot.
    """
    keys = datasets_of_suites(description, wanted.values(), asked)
    chosen = {key: select_statistics(description.norm_stats, key) for key in set(keys.values())}
    for needed, key in keys.items():
        found, statistics = chosen[key]
        if statistics.q01.size != needed.size:
            raise UserError(
                f"the action statistics of {found!r} have {statistics.q01.size} numbers, and {needed.dataset!r} is "
                f"played with {needed.size}: take a policy that was trained on all these suites"
            )
    used = dict.fromkeys([*description.unnorm_keys, *(chosen[key][0] for key in keys.values())])
    if len(used) > 1 and tuple(used) != description.unnorm_keys:
        first = chosen[next(iter(keys.values()))][0]
        description = replace(description, unnorm_key=first, unnorm_keys=tuple(used))
    by_instruction = {text: chosen[keys[needed]][1] for text, needed in wanted.items()}
    return description, by_instruction
