"""The token loop of `act`: K tokens after one prefill, and its replay as a CUDA graph.

Drawing 7 tokens through 32 layers launches several thousand small kernels, which takes the host longer than a GPU
needs to run them. On a GPU the whole loop, sampling included, is therefore recorded once per batch shape and
replayed with one launch. The recording reads and writes fixed memory: the key-value cache, the hidden state that
predicts the first token, each row's first column and the uniforms. Prompts are padded to a multiple of 8 and
columns are addressed row by row, so that batches of different prompts share a recording.

A recording is used only after its replay has given the tokens of the plain loop on the same inputs, and is dropped
when a weight has moved to other memory or adapters were switched; whatever fails leads back to the plain loop,
with a warning. The logic is tested with a recorder that replays by calling; `record_cuda_graph` itself has not run
on a GPU yet, nor has any speed been measured.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from vla_rl.functional import action_log_softmax, gather_log_probs, sample_from_uniforms
from vla_rl.policies import kernels
from vla_rl.policies.openvla.language import Columns, KeyValueCache
from vla_rl.policies.openvla.model import Decoding, OpenVLA
from vla_rl.policies.prompts import Prompts

LOG = logging.getLogger(__name__)

Choice = tuple[Tensor, Tensor]
"""Tokens [N, K] and their log-probs [N, K]."""
Recorder = Callable[[Callable[[], Choice], torch.device], Callable[[], Choice]]
"""Records work on fixed memory; what it returns runs that work again, on what the memory holds by then."""

ALIGNMENT = 8
"""Columns are padded to a multiple of this, as matrix units and attention kernels like it."""
MAX_SHAPES = 4
"""Batch shapes with recordings at a time; each keeps a cache (OpenVLA-7B in bfloat16: 157 MB per row)."""
AGREEMENT = 0.8
"""Share of tokens in which a first replay must equal the plain loop. A wrong recording agrees by chance, on one
token in 256; a right one may flip a near-tie where a library picks another kernel while recording."""


@dataclass(frozen=True)
class FixedTokens:
    """Tokens that are no decision of the policy."""

    where: Bool[Tensor, "N K"]
    token: int


@runtime_checkable
class Decides(Protocol):
    """How a policy comes from images and prompts to tokens. Call it in inference mode.

    The state that `prefill` gives is for `choose` alone, which uses it up.
    """

    def prefill(
        self, pixel_values: Float[Tensor, "N 6 H W"], prompts: Prompts
    ) -> tuple[Float[Tensor, "N D"], Any]:
        """The hidden state that predicts the first token, and what `choose` needs."""
        ...

    def prefill_shared(
        self, pixel_values: Float[Tensor, "N 6 H W"], prompts: Prompts, copies: int
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "NJ D"], Any]:
        """The same once, for `copies` choices of each row, row by row."""
        ...

    def choose(
        self,
        hidden: Float[Tensor, "N D"],
        state: Any,
        draws: Float32[Tensor, "N K"] | None,
        temperature: float,
        fixed: FixedTokens | None = None,
    ) -> Choice:
        """The K tokens of every row and their log-probs; without `draws` greedily, with log-probs of 0."""
        ...


def after_end(tokens: Int64[Tensor, "N K"], end: int | None) -> FixedTokens | None:
    """The tokens behind each row's first end token, which are no decision; None where rows have no end token."""
    if end is None:
        return None
    ends = tokens == end
    return FixedTokens(ends.cumsum(1) - ends.long() > 0, end)


def decisions(numbers: Float[Tensor, "N K"], fixed: FixedTokens | None) -> Float[Tensor, "N K"]:
    """Log-probs or entropies, 0 and without gradient where a token is fixed."""
    return numbers if fixed is None else numbers.masked_fill(fixed.where, 0.0)


def require_candidates(uniforms: np.ndarray, rows: int, count: int, temperature: float) -> None:
    """Raise ValueError unless candidates of `count` tokens can be drawn for so many rows."""
    if not temperature > 0:
        raise ValueError(
            f"candidates differ only if sampled: temperature must be positive, got {temperature}"
        )
    shape = uniforms.shape
    if len(shape) != 3 or (shape[0], shape[2]) != (rows, count) or shape[1] == 0:
        raise ValueError(f"uniforms must have shape ({rows}, J, {count}), got {shape}")


@runtime_checkable
class AnswersTokenByToken(Protocol):
    """A model that is asked for one action token after the other; `state` is its own."""

    def decode(self, state: Any, bins: Int64[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """Append one action token to every row; the hidden state that predicts the next one."""
        ...

    def action_logits(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows bins"]: ...


def choose_tokens(
    model: AnswersTokenByToken,
    hidden: Float[Tensor, "N D"],
    state: Any,
    draws: Float32[Tensor, "N K"] | None,
    temperature: float,
    count: int,
    fixed: FixedTokens | None = None,
    end: int | None = None,
) -> Choice:
    """Draw `count` tokens one after the other; without `draws` greedily, with log-probs of 0.

    A draw that is NaN takes the likeliest token, with its log-prob. Tokens that are `fixed` are not drawn. A row that
    has drawn the token `end` has end tokens from there on, with log-prob 0.

    Nothing in here waits for a GPU, and shapes depend on nothing that it computes. On the host, where nothing is waited
    for, the loop stops when all rows have ended.
    """
    tokens: list[Tensor] = []
    log_probs: list[Tensor] = []
    ended = hidden.new_zeros(len(hidden), dtype=torch.bool)
    for k in range(count):
        if end is not None and hidden.device.type == "cpu" and bool(ended.all()):
            break
        if k > 0:
            hidden = model.decode(state, tokens[-1])
        logits = model.action_logits(hidden)
        chosen = logits.argmax(-1)
        if draws is not None:
            log_probs.append(action_log_softmax(logits, temperature))
            sampled = sample_from_uniforms(log_probs[-1], draws[:, k])
            chosen = torch.where(draws[:, k].isnan(), chosen, sampled)
        if fixed is not None:
            chosen = chosen.masked_fill(fixed.where[:, k], fixed.token)
        if end is not None:
            chosen = chosen.masked_fill(ended, end)
            ended = ended | (chosen == end)
        tokens.append(chosen)
    every = torch.stack(tokens, 1)
    rest = (0, count - len(tokens))
    padded = every if end is None else F.pad(every, rest, value=end)
    if draws is None:
        return padded, torch.zeros(padded.shape, device=every.device)
    found = decisions(gather_log_probs(torch.stack(log_probs, 1), every), fixed)
    return padded, decisions(F.pad(found, rest), after_end(padded, end))


def record_cuda_graph(work: Callable[[], Choice], device: torch.device) -> Callable[[], Choice]:
    """Capture `work` as a CUDA graph. Its results lie in memory that the next replay overwrites.

    Raises RuntimeError where CUDA refuses to capture something, or has no memory left.
    """
    with torch.cuda.device(device):
        # libraries allocate workspaces on first use, which a capture forbids; a side stream keeps them apart
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = work()

    def replay() -> Choice:
        graph.replay()
        return results

    return replay


class _Shape:
    """The fixed memory of one batch shape, and its recordings by temperature."""

    def __init__(self, model: OpenVLA, batch: int, width: int, count: int) -> None:
        config = model.config.language
        weight = model.language_model.lm_head.weight
        self.width = width
        columns = _aligned(model.patches + width + count - 1)
        self.cache = KeyValueCache(config, batch, columns, weight.device, weight.dtype)
        self.hidden = torch.zeros(batch, config.hidden, device=weight.device, dtype=weight.dtype)
        self.first = torch.zeros(batch, 1, device=weight.device, dtype=torch.int64)
        self.draws = torch.zeros(batch, count, device=weight.device)
        self.replays: dict[float, Callable[[], Choice]] = {}
        self.tables: list[object] = []

    def hold_tables(self, model: OpenVLA) -> None:
        """Keep the tables that a recording made now reads where they lie, whatever their cache throws out later."""
        config, x = model.config.language, self.hidden
        head_dim, columns = config.hidden // config.heads, self.cache.columns
        self.tables += [
            kernels.rotary_tables(columns, head_dim, config.rope_theta, x.device, x.dtype),
            kernels.causal_bias(columns, x.device, x.dtype),
        ]

    def fill(
        self, hidden: Tensor, first: Int64[Tensor, "N 1"], draws: Float32[Tensor, "N K"] | None
    ) -> None:
        """Put one batch where recordings read it; the cache holds it already."""
        self.hidden.copy_(hidden)
        self.first.copy_(first)
        if draws is not None:
            self.draws.copy_(draws)


class TokenDecoder:
    """Prefill and token loop of one policy; with a `recorder`, the loop of a returning batch shape is recorded.

    Call it in inference mode. Results of `choose` are overwritten by its next call: copy what is to stay.
    """

    def __init__(
        self,
        model: OpenVLA,
        count: int,
        recorder: Recorder | None = None,
        end: int | None = None,
    ) -> None:
        """end: the token after which a row has nothing to decide any more; None: all rows have `count` tokens."""
        self.model = model
        self.count, self.end = count, end
        self.recorder = recorder
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._seen: Counter[tuple[int, int]] = Counter()
        self._signature: tuple[int | bool, ...] = ()

    def prefill(
        self, pixel_values: Float[Tensor, "N 6 H W"], prompts: Prompts
    ) -> tuple[Float[Tensor, "N D"], Decoding]:
        """Run the prompts once; the hidden state that predicts the first token, and what `choose` needs."""
        shape = self._shape_for(prompts) if self.recorder is not None else None
        if shape is None:
            return self.model.prefill(pixel_values, prompts, self.count)
        padded = F.pad(
            prompts.ids,
            (0, shape.width - prompts.ids.shape[1]),
            value=self.model.config.language.pad_token,
        )
        alike = Prompts(padded, prompts.lengths, row_by_row=True)
        return self.model.prefill(pixel_values, alike, self.count, shape.cache)

    def prefill_shared(
        self, pixel_values: Float[Tensor, "N 6 H W"], prompts: Prompts, copies: int
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "NJ D"], Decoding]:
        """Run the prompts once and hand every row to `copies` continuations, row by row.

        Returns the hidden states [N, D], and what `choose` needs for the N * J continuations. Keys and values of the
        prompts are copied, not computed again: the prefill is where the time goes, their copies only take memory.
        """
        hidden, state = self.prefill(pixel_values, prompts)
        if copies == 1:
            return hidden, hidden, state
        index = state.columns.index
        repeated = None if index is None else index.repeat_interleave(copies, 0)
        columns = replace(state.columns, index=repeated)
        decoding = Decoding(state.cache.repeat(copies), columns)
        return hidden, hidden.repeat_interleave(copies, 0), decoding

    def choose(
        self,
        hidden: Float[Tensor, "N D"],
        state: Decoding,
        draws: Float32[Tensor, "N K"] | None,
        temperature: float,
        fixed: FixedTokens | None = None,
    ) -> Choice:
        """The K tokens of every row and their log-probs, see `choose_tokens`. Uses up `state`."""
        shape = next((s for s in self._shapes.values() if s.cache is state.cache), None)
        if shape is None or fixed is not None:  # recordings know of no fixed tokens
            return choose_tokens(
                self.model, hidden, state, draws, temperature, self.count, fixed, self.end
            )
        assert state.columns.index is not None
        shape.fill(hidden, state.columns.index, draws)
        self._drop_outdated()
        temperature = 0.0 if draws is None else temperature
        if temperature in shape.replays:
            return shape.replays[temperature]()
        tokens, log_probs = self._plain(shape, temperature)
        result = tokens.clone(), log_probs.clone()
        self._record(shape, temperature, result)
        return result

    @property
    def recordings(self) -> int:
        """How many loops are recorded at present."""
        return sum(len(shape.replays) for shape in self._shapes.values())

    def _plain(self, shape: _Shape, temperature: float) -> Choice:
        state = Decoding(shape.cache, Columns(0, 1, shape.first))
        draws = shape.draws if temperature > 0 else None
        return choose_tokens(
            self.model, shape.hidden, state, draws, temperature, self.count, end=self.end
        )

    def _record(self, shape: _Shape, temperature: float, expected: Choice) -> None:
        assert self.recorder is not None
        shape.hold_tables(self.model)
        try:
            replay = self.recorder(lambda: self._plain(shape, temperature), shape.hidden.device)
            agreement = float((replay()[0] == expected[0]).double().mean())
        except RuntimeError as error:
            self._give_up(f"recording failed ({error})")
            return
        if agreement < AGREEMENT:
            self._give_up(f"a replay gave only {agreement:.0%} of the plain loop's tokens")
            return
        shape.replays[temperature] = replay

    def _give_up(self, reason: str) -> None:
        LOG.warning("decoding without CUDA graphs from here on: %s", reason)
        self.recorder = None
        self._shapes.clear()

    def _shape_for(self, prompts: Prompts) -> _Shape | None:
        """The fixed memory for this batch; None for a shape that has not come often enough.

        Recording takes as long as many calls. So a shape is recorded when it comes again, and it takes another
        one's place only after coming twice as often.
        """
        patches = self.model.patches
        width = _aligned(patches + prompts.ids.shape[1]) - patches
        key = (len(prompts.ids), width)
        self._seen[key] += 1
        if key not in self._shapes:
            if self._seen[key] < 2:
                return None
            if len(self._shapes) >= MAX_SHAPES:
                rarest = min(self._shapes, key=lambda shape: self._seen[shape])
                if self._seen[key] < 2 * self._seen[rarest]:
                    return None
                del self._shapes[rarest]
            self._shapes[key] = _Shape(self.model, *key, self.count)
        return self._shapes[key]

    def _drop_outdated(self) -> None:
        """Forget recordings that would read weights where they no longer lie."""
        pointers = [parameter.data_ptr() for parameter in self.model.parameters()]
        switches = [
            bool(module.disable_adapters)
            for module in self.model.modules()
            if hasattr(module, "disable_adapters")
        ]
        signature = (self.model.training, *switches, *pointers)
        if signature != self._signature:
            self._signature = signature
            for shape in self._shapes.values():
                shape.replays.clear()


def _aligned(columns: int) -> int:
    return -(-columns // ALIGNMENT) * ALIGNMENT
