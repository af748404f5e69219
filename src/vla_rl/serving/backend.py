"""What stands behind an engine's socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from vla_rl.serving.messages import Facts


@dataclass(frozen=True)
class Question:
    """What is to be decided; checked."""

    images: UInt8[Tensor, "N 3 S S"]
    """After the stages of `images.pipeline`, in the model's size; the engine normalises."""
    prompts: Sequence[Sequence[int]]
    """N rows of text ids, BOS first, without image patches."""
    seeds: Sequence[int]
    """One for each row, 0..2^63 - 1."""
    count: int
    """K, tokens to decode."""
    temperature: float
    """0 is greedy."""


class Backend(Protocol):
    """An engine without its socket. One thread calls it."""

    @property
    def facts(self) -> Facts: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Its weights under OpenVLA's names."""
        ...

    def act(self, question: Question) -> tuple[Int64[Tensor, "N K"], Float32[Tensor, "N K"]]:
        """Vocabulary ids and their log-probs under the tempered distribution over action ids alone.

        Greedily: of the likeliest id, at temperature 1.
        """
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take these weights, and forget whatever was computed with those of before.

        Names, shapes and numbers have been checked. Where it raises, the weights are neither the old nor the new ones:
        the engine must end.
        """
        ...
