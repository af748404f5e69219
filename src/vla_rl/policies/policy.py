"""What the rest of the system asks of a policy: `act` to play, `evaluate` to learn.

    Policy        plays, proposes, is improved by its log-probs; no value function is asked for
    ValuePolicy   a Policy with a critic: what actor-critic methods (PPO) need on top

Both are protocols: a class of policy inherits from neither. How one is found for a checkpoint: `registry`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from vla_rl.config.policy import SuiteActions
from vla_rl.types import Observation


@dataclass(frozen=True)
class PolicyOutput:
    """What `act` returns, on the policy's device, without gradients."""

    tokens: Int64[Tensor, "N K"]  # action bins 0..bins-1, not vocabulary ids
    log_probs: Float[Tensor, "N K"]  # of the tempered distribution sampled from; float32
    values: Float[Tensor, " N"] | None = None  # of a policy that `has_critic` always
    version: int | None = None
    """After how many windows of learning these weights were; None: the learner's present ones."""


@dataclass(frozen=True)
class Proposals:
    """What `propose` returns: J candidates for each observation, on the policy's device, without gradients."""

    tokens: Int64[Tensor, "N J K"]  # action bins 0..bins-1
    log_probs: Float[Tensor, "N J K"]  # of the tempered distribution; float32
    values: Float[Tensor, " N"] | None = None  # of a `ValuePolicy` always


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns, with gradients."""

    log_probs: Float[Tensor, "N K"]  # of the given tokens under the tempered distribution
    entropy: Float[Tensor, "N K"]  # of each token's distribution over the action bins, in nats
    values: Float[Tensor, " N"] | None = None  # of a `ValuePolicy` always
    mask: Bool[Tensor, "N K"] | None = None
    """Which tokens are decisions, where answers end at tokens of their own; the others are 0 above. None: all count."""


@runtime_checkable
class Policy(Protocol):
    """A policy that decides action tokens. `act` and `evaluate` agree to 1e-5 in float32."""

    @property
    def kind(self) -> str:
        """Its family, a key of `registry.POLICIES`: `model_type` in config.json, or what is for many of those."""
        ...

    @property
    def action_dim(self) -> int:
        """A, numbers an action has."""
        ...

    @property
    def action_chunk(self) -> int:
        """C, actions decided in one turn; K = C A tokens."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the images that the model looks at, pixels."""
        ...

    @property
    def resizes_images(self) -> bool:
        """Whether frames of any size may come; otherwise they come in `image_size`."""
        ...

    def act(
        self,
        observation: Observation,
        temperature: float = 1.0,
        uniforms: Float32[np.ndarray, "N K"] | None = None,
    ) -> PolicyOutput:
        """Decode K tokens for each observation; temperature 0 is greedy.

        `uniforms` in [0, 1) are the sampler's randomness, one number per token (inverse CDF): a row's
        result then does not depend on what else is in the batch. NaN takes the likeliest token. None draws them from
        torch.
        """
        ...

    def propose(
        self, observation: Observation, temperature: float, uniforms: Float32[np.ndarray, "N J K"]
    ) -> Proposals:
        """Decode J candidates for each observation in one batch, from one prefill per observation.

        Candidate j equals `act` with `uniforms[:, j]`, to the token; log-probs to 1e-5 in float32. Where a uniform is
        NaN the likeliest token is taken, so that a candidate of NaNs is the greedy one.
        """
        ...

    def evaluate(
        self, observation: Observation, tokens: Int64[Tensor, "N K"], temperature: float = 1.0
    ) -> Evaluation:
        """Log-probs of given tokens and entropies, with gradients, in one teacher-forced pass."""
        ...

    def fingerprint(self) -> str:
        """Digest of all that decides its actions, the same wherever its checkpoint lies; see `fingerprint.py`."""
        ...

    def keep_reference(self, folder: Path | str | None = None) -> None:
        """Fix the reference policy: the present weights, or those of a checkpoint when a run is resumed."""
        ...

    def reference_log_probs(
        self, observation: Observation, tokens: Int64[Tensor, "N K"], temperature: float = 1.0
    ) -> Float[Tensor, "N K"]:
        """The frozen initial policy's log-probs, no gradients; other threads may evaluate the policy meanwhile."""
        ...

    def decode_actions(self, tokens: Int64[Tensor, "N K"]) -> Float32[np.ndarray, "N C A"]:
        """Tokens to un-normalised actions in the simulator's units."""
        ...

    def encode_actions(
        self, actions: Float32[np.ndarray, "N C A"] | Float64[np.ndarray, "N C A"]
    ) -> Int64[Tensor, "N K"]:
        """Actions in the simulator's units to tokens, the inverse of `decode_actions` up to the bins' width."""
        ...

    def with_actions_of(
        self,
        statistics: Mapping[str, Any],
        action_chunk: int,
        image_fit: Literal["stretch", "pad", "crop"] | None = None,
    ) -> Policy:
        """The same weights for the actions and images of another dataset: what fine-tuning starts from.

        statistics: one dataset's, in the format of dataset_statistics.json, {name: {"action": {"q01", "q99", ...}}}.
        image_fit: what was done to its frames if they were not square; in play it is done again.
        The critic is a fresh one, and this policy is not to be used any more.
        """
        ...

    def policy_parameters(self) -> list[torch.nn.Parameter]:
        """What the policy optimizer trains; never contains a critic parameter."""
        ...

    def save(self, folder: Path) -> None:
        """Write a checkpoint that `registry.load_policy` loads to the same bits."""
        ...


@runtime_checkable
class Critic(Protocol):
    """What a policy with a value function has on top."""

    detach_values: bool
    """Set while nothing but the critic may learn: the value loss then stops at a shared trunk."""

    def values(self, observation: Observation) -> Float[Tensor, " N"]:
        """V of each observation, with gradients to the critic's parameters only as configured."""
        ...

    def critic_parameters(self) -> list[torch.nn.Parameter]: ...


@runtime_checkable
class ValuePolicy(Policy, Critic, Protocol):
    """A policy with a value function: its `act`, `propose` and `evaluate` give values as well."""


@runtime_checkable
class PlaysSuites(Protocol):
    """What a policy has on top that can play suites with different statistics, or robots, at once."""

    @property
    def plays_suites(self) -> bool:
        """Whether it has several suites' statistics."""
        ...

    def play_suites(self, wanted: Mapping[str, SuiteActions]) -> int:
        """Play each of these instructions with its suite's statistics from now on; returns the longest action's size.

        UserError, naming what is there and what is missing, where it has no statistics for a suite.
        """
        ...

    def encode_actions_for(
        self,
        actions: Float32[np.ndarray, "N C A"] | Float64[np.ndarray, "N C A"],
        instructions: Sequence[str],
    ) -> Int64[Tensor, "N K"]:
        """`encode_actions`, each row by the statistics of its instruction; A is the longest action's."""
        ...


@runtime_checkable
class DecodesForSuites(Protocol):
    """A policy or player that knows what tokens mean by the instruction that they answer."""

    def decode_actions_for(
        self, tokens: Int64[Tensor, "N K"], instructions: Sequence[str]
    ) -> Float32[np.ndarray, "N C A"]:
        """`decode_actions`, each row by the statistics of its instruction; A is the longest action's."""
        ...


@runtime_checkable
class AnswersAtLength(Protocol):
    """A policy or player whose turns need not have K = C A tokens, but end with a token of their own."""

    @property
    def num_tokens(self) -> int:
        """K, tokens of a turn at most."""
        ...

    def decided(self, tokens: Int64[Tensor, "N K"]) -> Bool[np.ndarray, "N K"] | None:
        """Which tokens are decisions: those up to the end token, that one included; None: all of every answer."""
        ...

    def meant(self, tokens: Int64[Tensor, "N K"]) -> Bool[np.ndarray, " N"] | None:
        """Which answers mean a chunk of actions; the robot stands still for the others. None: all do."""
        ...


def tokens_of_turn(player: SizesActions) -> int:
    """K, tokens of a turn at most."""
    if isinstance(player, AnswersAtLength):
        return player.num_tokens
    return player.action_chunk * player.action_dim


def decided(player: object, tokens: Int64[Tensor, "N K"]) -> Bool[np.ndarray, "N K"] | None:
    """See `AnswersAtLength.decided`; None as well for a player whose answers all have one length."""
    return player.decided(tokens) if isinstance(player, AnswersAtLength) else None


def meant(player: object, tokens: Int64[Tensor, "N K"]) -> Bool[np.ndarray, " N"] | None:
    """See `AnswersAtLength.meant`; None as well for a player whose answers all have one length."""
    return player.meant(tokens) if isinstance(player, AnswersAtLength) else None


@runtime_checkable
class SizesActions(Protocol):
    """The part of a policy that says how large its turns are."""

    @property
    def action_dim(self) -> int: ...

    @property
    def action_chunk(self) -> int: ...


@runtime_checkable
class DecodesActions(Protocol):
    """The part of a policy that says what its tokens mean."""

    def decode_actions(self, tokens: Int64[Tensor, "N K"]) -> Float32[np.ndarray, "N C A"]: ...


def decoded(
    player: DecodesActions, tokens: Int64[Tensor, "N K"], instructions: Sequence[str]
) -> Float32[np.ndarray, "N C A"]:
    """What the tokens that answer these instructions, one for each row, do in the simulator."""
    if isinstance(player, DecodesForSuites):
        return player.decode_actions_for(tokens, instructions)
    return player.decode_actions(tokens)


def has_critic(policy: object) -> TypeGuard[ValuePolicy]:
    """Whether the policy has a value function: one with parameters of its own."""
    return isinstance(policy, Critic) and bool(policy.critic_parameters())


class ForPolicy:
    """What every engine leaves to the policy that it plays for: the sizes of actions, and what tokens mean."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def action_dim(self) -> int:
        return self._policy.action_dim

    @property
    def action_chunk(self) -> int:
        return self._policy.action_chunk

    @property
    def num_tokens(self) -> int:
        return tokens_of_turn(self._policy)

    def decided(self, tokens: Int64[Tensor, "N K"]) -> Bool[np.ndarray, "N K"] | None:
        return decided(self._policy, tokens)

    def meant(self, tokens: Int64[Tensor, "N K"]) -> Bool[np.ndarray, " N"] | None:
        return meant(self._policy, tokens)

    def decode_actions(self, tokens: Int64[Tensor, "N K"]) -> Float32[np.ndarray, "N C A"]:
        return self._policy.decode_actions(tokens)

    def decode_actions_for(
        self, tokens: Int64[Tensor, "N K"], instructions: Sequence[str]
    ) -> Float32[np.ndarray, "N C A"]:
        return decoded(self._policy, tokens, instructions)
