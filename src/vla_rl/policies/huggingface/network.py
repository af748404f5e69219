"""Passes through an image-text model: prefill, one token more, and a whole answer at once.

All three ask the model what its own `generate` would give it: positions from `_prepare_position_ids_for_generation`
(three axes in Qwen-VL, from one in PaliGemma), masks from `prepare_inputs_for_generation` (PaliGemma's prompt sees all
of itself). So `act`, `evaluate` and transformers' `generate` compute the same numbers. The output head is applied to
the columns and ids that are asked for, never to the whole vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.policies.huggingface.conversation import Inputs, with_answer

HEAD_AGREEMENT = 1e-2
"""Of the largest logit: bfloat16 rounds to 1 in 256."""


@dataclass
class Answering:
    """Where a batch of answers stands."""

    cache: Any
    inputs: Inputs
    """Of the prompts, without images."""
    last_position: Int64[Tensor, "*axes N 1"]
    answered: int = 0

    def repeat(self, copies: int) -> Answering:
        """Every row `copies` times, keys and values copied. Uses this one up."""
        if copies == 1:
            return self
        for layer in self.cache.layers:
            layer.keys = layer.keys.repeat_interleave(copies, 0)
            layer.values = layer.values.repeat_interleave(copies, 0)
            layer.batch_size = len(layer.keys)
        rows = {name: value.repeat_interleave(copies, 0) for name, value in self.inputs.items()}
        # the batch is the last but one axis of positions
        position = self.last_position.repeat_interleave(copies, -2)
        return Answering(self.cache, rows, position, self.answered)


def suffix_type(model: Any) -> int:
    """Which `token_type_ids` an answer has."""
    return 1 if "paligemma" in model.config.model_type else 0


def whole_answer(
    model: Any, inputs: Inputs, ids: Int64[Tensor, "N k"], count: int
) -> Float[Tensor, "N count D"]:
    """Hidden states that predict `count` tokens, the first k = count - 1 of which are given. With gradients."""
    longer = with_answer(inputs, ids, suffix_type(model)) if ids.shape[1] else inputs
    position_ids = _positions(model, longer)
    asked = model.prepare_inputs_for_generation(
        **longer, position_ids=position_ids, use_cache=False, is_first_iteration=True
    )
    return model.base_model(**asked).last_hidden_state[:, -count:]


def prefill(model: Any, inputs: Inputs, tokens: int) -> tuple[Float[Tensor, "N D"], Answering]:
    """Read the prompts once, with room for `tokens` tokens; the hidden state that predicts the first of them."""
    from transformers import StaticCache

    columns = inputs["input_ids"].shape[1] + tokens - 1
    cache = StaticCache(config=model.config, max_cache_len=columns)
    position_ids = _positions(model, inputs)
    asked = model.prepare_inputs_for_generation(
        **inputs, position_ids=position_ids, past_key_values=cache, use_cache=True, is_first_iteration=True,
    )  # fmt: skip
    hidden = model.base_model(**asked).last_hidden_state[:, -1]
    kept = {
        name: value
        for name, value in inputs.items()
        if name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    }
    return hidden, Answering(cache, kept, position_ids[..., -1:])


def next_token(model: Any, state: Answering, ids: Int64[Tensor, " N"]) -> Float[Tensor, "N D"]:
    """Say one token more; the hidden state that predicts the next."""
    state.inputs = with_answer(state.inputs, ids[:, None], suffix_type(model))
    state.answered += 1
    asked = model.prepare_inputs_for_generation(
        **state.inputs, position_ids=state.last_position + state.answered, past_key_values=state.cache,
        next_sequence_length=1, use_cache=True, is_first_iteration=False,
    )  # fmt: skip
    return model.base_model(**asked).last_hidden_state[:, -1]


def action_logits(
    model: Any, hidden: Float[Tensor, "*n D"], ids: Int64[Tensor, " bins"]
) -> Float[Tensor, "*n bins"]:
    """Logits of the action ids alone."""
    head = model.get_output_embeddings()
    weight = head.weight.index_select(0, ids)
    bias = None if head.bias is None else head.bias.index_select(0, ids)
    logits = F.linear(hidden.to(weight.dtype), weight, bias)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@torch.no_grad()
def check_head(model: Any, inputs: Inputs, ids: Int64[Tensor, " bins"], name: str) -> None:
    """Raise UserError unless `action_logits` is what the model itself computes.

    A model may scale its logits, or put something else between its last state and its head.
    """
    position_ids = _positions(model, inputs)
    asked = model.prepare_inputs_for_generation(
        **inputs, position_ids=position_ids, use_cache=False, is_first_iteration=True
    )
    expected = model(**asked).logits[:, -1, ids].float()
    none = ids.new_zeros(len(inputs["input_ids"]), 0)
    found = action_logits(model, whole_answer(model, inputs, none, 1)[:, 0], ids).float()
    error = (found - expected).abs().max()
    if not error <= HEAD_AGREEMENT * expected.abs().max().clamp(min=1e-3):
        raise UserError(
            f"{name}: its logits are not its output head's product with its last hidden state (they differ by "
            f"{float(error):.3g}): this class of models cannot be trained here"
        )


def _positions(model: Any, inputs: Inputs) -> Int64[Tensor, "*axes N L"]:
    return model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
