"""What a client asks of an engine, and what that answers: schemas of the headers' fields.

hello    -> facts     who the engine is, and what it expects
status   -> status    version of its weights, how much it has done
act      -> acted     images [N, 3, S, S], ids [N, L], lengths [N], seeds [N]
                      -> tokens [N, K] (vocabulary ids), log_probs [N, K]
weights  -> renewed   tensors under OpenVLA's names, adapters merged
anything -> refused   with a reason
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, MaxLen

Text = Annotated[str, MaxLen(4000)]
_Size = Annotated[int, Ge(1), Le(2**40)]
Version = Annotated[int, Ge(0), Le(2**53)]
COLDEST, HOTTEST = 0.01, 100.0
"""Between these a temperature is taken as it is. vLLM would make 0.01 of less, without a word."""
MOST_TOKENS = 2**16
MOST_ROWS = 4096


@dataclass(frozen=True)
class Hello:
    """What a client says first."""

    token: Text = ""


@dataclass(frozen=True)
class Facts:
    """Who an engine is, and what it expects."""

    engine: Text
    """vllm, or own."""
    library: Text
    """Its name and version, for a person."""
    dtype: Literal["float32", "bfloat16", "float16"]
    """Of the weights."""
    device: Text
    image_size: Annotated[int, Ge(1), Le(4096)]
    bos_token: Annotated[int, Ge(0), Le(2**24)]
    first_action: Annotated[int, Ge(0), Le(2**24)]
    """The first vocabulary id of an action; text ids lie below."""
    action_bins: Annotated[int, Ge(2), Le(2**20)]
    longest: Annotated[int, Ge(1), Le(2**24)]
    """Tokens that prompt and action may have together, image patches aside."""
    weight_count: _Size
    """Numbers that all weights are."""


@dataclass(frozen=True)
class Act:
    """Decode `count` tokens for each row."""

    count: Annotated[int, Ge(1), Le(MOST_TOKENS)]
    temperature: Annotated[float, Ge(0), Le(HOTTEST)]
    """0 is greedy; log-probs are then of temperature 1."""


@dataclass(frozen=True)
class Weights:
    """Play with these tensors in the place of those of the same names."""

    version: Version
    checksum: Annotated[str, MaxLen(128)]


@dataclass(frozen=True)
class Status:
    """What an engine has done."""

    version: Version | None
    """Of its weights; None while they are those of its checkpoint."""
    checksum: Annotated[str, MaxLen(128)]
    """Of the tensors that it received last; empty before that."""
    rows: Annotated[int, Ge(0), Le(2**62)]
    """Observations decided."""
    seconds: Annotated[float, Ge(0), Le(1e12)]
    """Spent on deciding them."""


@dataclass(frozen=True)
class Refused:
    """Why not."""

    reason: Text
