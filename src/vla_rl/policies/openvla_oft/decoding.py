"""The tokens of `act` from one parallel pass: each is drawn from its own distribution, independently of the others."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from vla_rl.functional import action_log_softmax, gather_log_probs, sample_from_uniforms
from vla_rl.policies.openvla.decoding import Choice, FixedTokens, decisions
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.prompts import Prompts


class ParallelDecoder:
    """See `Decides`. The state between `prefill` and `choose` is the logits of all K tokens."""

    def __init__(self, model: OpenVLA, count: int) -> None:
        self.model = model
        self.count = count

    def prefill(
        self, pixel_values: Float[Tensor, "N c H W"], prompts: Prompts
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N K bins"]]:
        """The one pass: the hidden state that predicts the first token, and the logits of all."""
        undecided = prompts.ids.new_zeros(len(prompts.ids), self.count)
        logits, hidden = self.model(pixel_values, prompts, undecided)
        return hidden, logits

    def prefill_shared(
        self, pixel_values: Float[Tensor, "N c H W"], prompts: Prompts, copies: int
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "NJ D"], Float[Tensor, "NJ K bins"]]:
        """The same one pass, whose logits are handed to `copies` choices of each row, row by row."""
        hidden, logits = self.prefill(pixel_values, prompts)
        return hidden, hidden.repeat_interleave(copies, 0), logits.repeat_interleave(copies, 0)

    def choose(
        self,
        hidden: Float[Tensor, "N D"],
        state: Float[Tensor, "N K bins"],
        draws: Float32[Tensor, "N K"] | None,
        temperature: float,
        fixed: FixedTokens | None = None,
    ) -> Choice:
        """The K tokens of every row and their log-probs; without `draws` greedily, with log-probs of 0.

        A draw that is NaN takes the likeliest token, with its log-prob. Tokens that are `fixed` are not drawn.
        """
        tokens = state.argmax(-1)
        log_probs = None
        if draws is not None:
            log_probs = action_log_softmax(state, temperature)
            tokens = torch.where(draws.isnan(), tokens, sample_from_uniforms(log_probs, draws))
        if fixed is not None:
            tokens = tokens.masked_fill(fixed.where, fixed.token)
        if log_probs is None:
            return tokens, torch.zeros(tokens.shape, device=tokens.device)
        return tokens, decisions(gather_log_probs(log_probs, tokens), fixed)
