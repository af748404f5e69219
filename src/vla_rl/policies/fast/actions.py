"""What a turn's FAST tokens mean: a chunk of actions, or none.

A turn has K tokens at most. Its codes are followed by the end token, and that by more end tokens up to K, which are no
decision. An answer without an end token within K is too long, and one whose codes do not spell exactly H D numbers
cannot be read: either means no chunk, and the robot stands still for that turn. Its actions are then zeros in the
simulator's own units, whatever the statistics say: no motion for the relative commands of Meta-World and LIBERO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from vla_rl.config.errors import UserError
from vla_rl.policies.action_tokens import ActionStatistics, gripper_from_libero, gripper_to_libero
from vla_rl.policies.fast.tokenizer import FastTokenizer

Actions = Float32[np.ndarray, "N C A"] | Float64[np.ndarray, "N C A"]


def normalized(
    actions: Actions, statistics: ActionStatistics, gripper: Literal["as-is", "openvla"] = "as-is"
) -> Float64[np.ndarray, "N C A"]:
    """Actions in the simulator's units as a tokenizer is given them: by quantiles, clipped to -1..1 as bins are."""
    if gripper == "openvla":
        actions = gripper_from_libero(actions)
    return np.clip(statistics.normalize(actions), -1.0, 1.0)


class FastTokens(NamedTuple):
    """How a policy writes its actions."""

    tokenizer: FastTokenizer
    most: int
    """K, tokens of a turn at most, the end token among them."""

    @property
    def end(self) -> int:
        """The end token, as an action bin."""
        return self.tokenizer.vocabulary


class FastActions:
    """Tokens to actions and back for one checkpoint; the counterpart of `openvla.actions.TurnActions`."""

    has_fixed = False
    fixed_token = 0

    def __init__(
        self,
        fast: FastTokens,
        statistics: ActionStatistics,
        gripper: Literal["as-is", "openvla"],
        margin: float = 0.0,
    ) -> None:
        """margin: see `ActionStatistics.unnormalize`."""
        self._codes, self.num_tokens, self.end_token = fast.tokenizer, fast.most, fast.end
        self._statistics, self._margin = statistics, margin
        self._gripper: Literal["as-is", "openvla"] = gripper

    @property
    def gripper(self) -> Literal["as-is", "openvla"]:
        """What the last number of an action says, see `ModelConfig.gripper`."""
        return self._gripper

    @property
    def played_size(self) -> int:
        """Numbers of an action."""
        return self._codes.action_dim

    def play(self, statistics: Mapping[str, ActionStatistics]) -> None:
        """Refuse to play instructions of several suites, each with its own statistics."""
        if statistics:
            raise UserError(
                "FAST tokens are fitted to one suite's actions, and this policy is asked to play several suites: "
                "play them one after the other, or fine-tune without --actions fast"
            )

    def free(self, instructions: Sequence[str]) -> None:
        """Before anything is decided nothing is known to be no decision."""
        return

    def decode(
        self, tokens: Int64[np.ndarray, "N K"], instructions: Sequence[str] | None = None
    ) -> Float32[np.ndarray, "N C A"]:
        """Tokens to actions in the simulator's units; an answer that means no chunk is a turn without motion.

        Actions lie within the statistics' quantiles, as those of bins do.
        """
        actions = np.zeros((len(tokens), self._codes.horizon, self._codes.action_dim), np.float32)
        for row, chunk in enumerate(self._chunks(tokens)):
            if chunk is not None:
                actions[row] = self._to_robot(np.clip(chunk, -1.0, 1.0))
        return actions

    def encode(
        self, actions: Actions, instructions: Sequence[str] | None = None
    ) -> Int64[np.ndarray, "N K"]:
        """The inverse of `decode` up to the tokenizer's rounding.

        UserError for another chunk or action size, and where a chunk takes more than K tokens.
        """
        rows = self._codes.encode(self._normalized(actions))
        longest = max((len(row) for row in rows), default=0) + 1
        if longest > self.num_tokens:
            over = sum(len(row) + 1 > self.num_tokens for row in rows)
            raise UserError(
                f"{over} of {len(rows)} turns take more FAST tokens than the policy has, {longest} instead of "
                f"{self.num_tokens}: raise fast.max_tokens, or fit a tokenizer to these demonstrations"
            )
        tokens = np.full((len(rows), self.num_tokens), self.end_token, np.int64)
        for target, row in zip(tokens, rows, strict=True):
            target[: len(row)] = row
        return tokens

    def _normalized(self, actions: Actions) -> Float64[np.ndarray, "N C A"]:
        if actions.shape[-1] != self._codes.action_dim:
            self._codes.transform(actions)  # says what is wrong
        return normalized(actions, self._statistics, self._gripper)

    def decided(self, tokens: Int64[np.ndarray, "N K"]) -> Bool[np.ndarray, "N K"]:
        """Which tokens are decisions: those up to the first end token, that one included."""
        ends = tokens == self.end_token
        return np.cumsum(ends, 1) - ends == 0

    def meant(self, tokens: Int64[np.ndarray, "N K"]) -> Bool[np.ndarray, " N"]:
        """Which answers mean a chunk of actions."""
        return np.array([chunk is not None for chunk in self._chunks(tokens)], bool)

    def _chunks(self, tokens: Int64[np.ndarray, "N K"]) -> list[np.ndarray | None]:
        ended = (tokens == self.end_token).any(1)
        length = (tokens == self.end_token).argmax(1)
        rows = [row[:n].tolist() for row, n in zip(tokens, length, strict=True)]
        found = self._codes.decode_batch(rows)
        return [chunk if fine else None for chunk, fine in zip(found, ended, strict=True)]

    def _to_robot(self, chunk: Float64[np.ndarray, "C A"]) -> Float64[np.ndarray, "C A"]:
        actions = self._statistics.unnormalize(chunk, self._margin)
        return gripper_to_libero(actions) if self._gripper == "openvla" else actions
