"""A Llama-style language model that computes what action decoding needs and nothing else; causal unless asked.

Names of parameters are those of Hugging Face's Llama. Column c of a sequence has rotary position c, given
explicitly; the last layer computes keys and values for all columns but the rest only at the columns asked for,
and there is no full-vocabulary output.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vla_rl.config.openvla import LanguageConfig
from vla_rl.functional import at_least_float32
from vla_rl.policies import kernels
from vla_rl.policies.kernels import Linear


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the mean in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class Columns:
    """Which columns of the sequence a forward pass computes, per row of the batch or alike for all.

    `start` and `count` name a run that is the same in every row; `index`, if given, holds the columns row by
    row instead (prompts of unequal length).
    """

    start: int
    count: int
    index: Int64[Tensor, "N Q"] | None = None

    def take(self, x: Float[Tensor, "N S D"]) -> Float[Tensor, "N Q D"]:
        """Return these columns of a tensor that has all columns."""
        if self.index is None:
            return x[:, self.start : self.start + self.count].contiguous()
        return x.gather(1, self.index[..., None].expand(-1, -1, x.shape[-1]))

    def rows(self, table: Float[Tensor, "S d"]) -> Float[Tensor, "*N Q d"]:
        """Return these rows of a table that has one per column."""
        if self.index is None:
            return table[self.start : self.start + self.count]
        return table[self.index]


@dataclass(frozen=True)
class Bidirectional:
    """Attention in which every column sees every other one, padding excepted."""

    padding: Bool[Tensor, "N S"] | None = None
    """Columns that none may see; None where there are none."""

    def bias(self, queries: int, dtype: torch.dtype) -> Float[Tensor, "N 1 Q S"] | None:
        """0 for what may be seen, minus infinity elsewhere; None where all may."""
        if self.padding is None:
            return None
        seen = torch.zeros(self.padding.shape, device=self.padding.device, dtype=dtype)
        masked = seen.masked_fill(self.padding, -torch.inf)
        return masked[:, None, None].expand(-1, -1, queries, -1)


class KeyValueCache:
    """Keys and values of every layer, with room for a fixed number of columns."""

    def __init__(
        self,
        config: LanguageConfig,
        batch: int,
        columns: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (config.layers, 2, batch, config.heads, columns, config.hidden // config.heads)
        # zeros: columns not yet written are hidden from softmax, but 0 * nan would still be nan
        self.storage = torch.zeros(shape, device=device, dtype=dtype)
        self.columns = columns

    def repeat(self, copies: int) -> KeyValueCache:
        """A cache with every row `copies` times in a row, in memory of its own."""
        repeated = copy.copy(self)
        repeated.storage = self.storage.repeat_interleave(copies, 2)
        return repeated

    def clear(self, start: int) -> None:
        """Empty the columns from `start` on, before the ones up to there are written again."""
        self.storage[..., start:, :].zero_()

    def write(
        self,
        layer: int,
        at: Columns,
        k: Float[Tensor, "N h S d"],
        v: Float[Tensor, "N h S d"],
    ) -> tuple[Float[Tensor, "N h C d"], Float[Tensor, "N h C d"]]:
        """Store k and v at the given columns; return all columns that may hold something by now."""
        keys, values = self.storage[layer]
        if at.index is None:
            end = at.start + at.count
            keys[:, :, at.start : end] = k
            values[:, :, at.start : end] = v
            return keys[:, :, :end], values[:, :, :end]
        target = at.index[:, None, :, None].expand_as(k)
        keys.scatter_(2, target, k)
        values.scatter_(2, target, v)
        return keys, values


class SelfAttention(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_dim = config.hidden // config.heads
        self.q_proj = Linear(config.hidden, config.hidden, bias=False)
        self.k_proj = Linear(config.hidden, config.hidden, bias=False)
        self.v_proj = Linear(config.hidden, config.hidden, bias=False)
        self.o_proj = Linear(config.hidden, config.hidden, bias=False)

    def split(self, x: Float[Tensor, "N S D"]) -> Float[Tensor, "N S h d"]:
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_dim)


class GatedMlp(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden, config.mlp_width, bias=False)
        self.up_proj = Linear(config.hidden, config.mlp_width, bias=False)
        self.down_proj = Linear(config.mlp_width, config.hidden, bias=False)


@dataclass(frozen=True)
class Pass:
    """What all layers of one forward pass share."""

    columns: Columns  # of the input
    cos: Float[Tensor, "*N S 1 d"]
    sin: Float[Tensor, "*N S 1 d"]
    bias: Float[Tensor, "*N_1 S C"] | None
    causal: bool


class Layer(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp = GatedMlp(config)
        self.input_layernorm = RMSNorm(config.hidden, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.rms_norm_eps)

    def forward(
        self,
        x: Float[Tensor, "N S D"],
        shared: Pass,
        asked: tuple[Columns, Pass] | None,
        cache: KeyValueCache | None,
        layer: int,
    ) -> Float[Tensor, "N Q D"]:
        """One block. `asked` restricts queries to some columns; keys and values are made for all of x."""
        attention = self.self_attn
        h = self.input_layernorm(x)
        k = kernels.rotate(attention.split(attention.k_proj(h)), shared.cos, shared.sin).transpose(
            1, 2
        )
        v = attention.split(attention.v_proj(h)).transpose(1, 2)
        if cache is not None:
            k, v = cache.write(layer, shared.columns, k, v)
        if asked is not None:
            columns, shared = asked
            x, h = columns.take(x), columns.take(h)
        q = kernels.rotate(attention.split(attention.q_proj(h)), shared.cos, shared.sin).transpose(
            1, 2
        )
        mixed = kernels.attend(q, k, v, shared.bias, shared.causal).transpose(1, 2).reshape(x.shape)
        x = kernels.linear_add(attention.o_proj, mixed, x)
        h = self.post_attention_layernorm(x)
        return kernels.linear_add(
            self.mlp.down_proj, kernels.gated_linear(self.mlp.gate_proj, self.mlp.up_proj, h), x
        )


class Decoder(nn.Module):
    """Embedding, layers and final norm: `language_model.model` of the checkpoint."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.padded_vocab, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.rms_norm_eps)
        self.recompute = False
        """Keep only each layer's input for the backward pass."""

    def _pass(
        self, x: Tensor, columns: Columns, visible: int, length: int, sight: Bidirectional | None
    ) -> Pass:
        """Rotary tables and mask for queries at `columns` that may look at the first `visible` columns."""
        config = self.config
        head_dim = config.hidden // config.heads
        cos, sin = kernels.rotary_tables(length, head_dim, config.rope_theta, x.device, x.dtype)
        whole = columns.index is None and columns.start == 0 and columns.count == visible
        newest = columns.index is None and columns.count == 1 and columns.start == visible - 1
        bias = None
        if sight is not None:
            queries = columns.count if columns.index is None else columns.index.shape[1]
            whole, bias = False, sight.bias(queries, x.dtype)
        elif not whole and not newest:
            bias = columns.rows(kernels.causal_bias(length, x.device, x.dtype))[..., :visible]
            bias = bias if columns.index is None else bias[:, None]
        return Pass(
            columns, columns.rows(cos).unsqueeze(-2), columns.rows(sin).unsqueeze(-2), bias, whole
        )

    def forward(
        self,
        x: Float[Tensor, "N S D"],
        at: Columns,
        asked: Columns | None = None,
        cache: KeyValueCache | None = None,
        sight: Bidirectional | None = None,
    ) -> Float[Tensor, "N Q D"]:
        """Hidden states after the final norm.

        x: embeddings of the columns `at`. `asked`: the columns whose hidden states are wanted (all of `at` if
        None); they must lie within `at`. `cache`: earlier columns, to which these are added. `sight`: None is causal;
        otherwise `at` is the whole sequence.
        """
        if cache is not None and at.index is not None:
            visible = cache.columns
        else:
            visible = at.start + at.count
        length = visible if cache is None else cache.columns
        shared = self._pass(x, at, visible, length, sight)
        last = len(self.layers) - 1
        selection = None if asked is None else (asked, self._pass(x, asked, visible, length, sight))
        for i, layer in enumerate(self.layers):
            x = kernels.run_block(
                layer, x, shared, selection if i == last else None, cache, i,
                recompute=self.recompute and cache is None,
            )  # fmt: skip
        return self.norm(x)


class LanguageModel(nn.Module):
    """Decoder and output head. The head is applied to a slice of its rows only, by the caller's choice."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden, config.padded_vocab, bias=False)

    def logits(
        self, hidden: Float[Tensor, "*rows D"], first: int, end: int
    ) -> Float[Tensor, "*rows ids"]:
        """Logits of the vocabulary ids first..end-1, in float32 at least."""
        weight = self.lm_head.weight[first:end]
        return kernels.linear(at_least_float32(hidden), at_least_float32(weight))
