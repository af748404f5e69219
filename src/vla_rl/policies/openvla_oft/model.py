"""The OpenVLA-OFT model with discrete action tokens: OpenVLA's weights, and one pass for all tokens of a turn.

    column   0    1 .. P          P+1 .. P+L-1        P+L .. P+L+K-1   P+L+K   after it
    content  BOS  patch features  rest of the prompt  K zero vectors   </s>    padding of shorter rows

P counts the patches of all images, one after the other. Every column sees every other, padding excepted, and nothing of
the tokens that are decided: a row's K distributions are independent of each other given what it sees. Logits of action
token k stand at column P + L - 1 + k, from the prompt's last column to the placeholder before the last. Placeholders
differ by their position alone, which the second layer is the first to tell.

Source: moojink/openvla-oft@213c5ff, prismatic/extern/hf/modeling_prismatic.py, and moojink/transformers-openvla-oft
@bc339d9, whose `LlamaSdpaAttention` is bidirectional.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.config.openvla import ModelConfig
from vla_rl.policies.openvla.language import Bidirectional, Columns, KeyValueCache
from vla_rl.policies.openvla.model import Decoding, OpenVLA
from vla_rl.policies.prompts import Prompts

STOP_TOKEN = 2
"""</s> of Llama's tokenizer, and of the small ones that are built here."""
LEAST_LAYERS = 2
"""Placeholders are zeros, so that the first layer gives them all the same."""
IMAGE_CHANNELS = 6


class OpenVLAOFT(OpenVLA):
    """Images and prompts to logits over the action bins of all K tokens at once.

    Raises UserError for a language model of one layer, which cannot tell one action token from another.
    """

    kind: ClassVar[str] = "openvla-oft"
    published_chunk: ClassVar[int] = 8

    def __init__(self, config: ModelConfig) -> None:
        if config.language.layers < LEAST_LAYERS:
            raise UserError(
                f"model {config.name!r} has {config.language.layers} language layer: parallel decoding needs "
                f"{LEAST_LAYERS} to tell the action tokens of a turn apart"
            )
        super().__init__(config)

    def embed_images(self, pixel_values: Float[Tensor, "N c H W"]) -> Float[Tensor, "N P D"]:
        """The patches of each image, six channels of `pixel_values`, one after the other."""
        each = [super(OpenVLAOFT, self).embed_images(x) for x in self._images(pixel_values)]
        return each[0] if len(each) == 1 else torch.cat(each, 1)

    def forward(
        self,
        pixel_values: Float[Tensor, "N c H W"],
        prompts: Prompts,
        bins: Int64[Tensor, "N K"],
    ) -> tuple[Float[Tensor, "N K bins"], Float[Tensor, "N D"]]:
        """Logits of K action tokens, and the hidden state that predicts the first one.

        Of `bins` the number alone counts. c is 6 for each image.
        """
        hidden = self.hidden_states(pixel_values, prompts, bins.shape[1], bins.shape[1])
        return OpenVLA.action_logits(self, hidden), hidden[:, 0].clone()

    def hidden_states(
        self, pixel_values: Float[Tensor, "N c H W"], prompts: Prompts, count: int, asked: int
    ) -> Float[Tensor, "N asked D"]:
        """Hidden states of the first `asked` columns from the prompt's last one on, with `count` placeholders."""
        ids, placeholders, padding = self._text(prompts, count)
        text = self.language_model.model.embed_tokens(ids)
        text = text.masked_fill(placeholders[..., None], 0.0)
        images = self.embed_images(pixel_values)
        x = torch.cat([text[:, :1], images, text[:, 1:]], 1)
        if padding is not None:
            padding = F.pad(padding, (images.shape[1], 0), value=False)
        columns = self._asked(prompts, asked, len(self._images(pixel_values)))
        whole = Columns(0, x.shape[1])
        return self.language_model.model(x, whole, columns, sight=Bidirectional(padding))

    def _images(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return pixel_values.split(IMAGE_CHANNELS, 1)

    def _text(
        self, prompts: Prompts, count: int
    ) -> tuple[
        Int64[Tensor, "N S"], Bool[Tensor, "N S"], Bool[Tensor, "N S"] | None
    ]:  # fmt: skip
        """Ids of prompt, placeholders and stop token, row by row; which are placeholders; and which are padding."""
        width = int(prompts.lengths.max())
        ids = F.pad(prompts.ids[:, :width], (0, count + 1), value=self.config.language.pad_token)
        column = torch.arange(ids.shape[1], device=ids.device)
        first = torch.from_numpy(prompts.lengths).to(ids.device)[:, None]
        ids = ids.masked_fill(column == first + count, STOP_TOKEN)
        placeholders = (column >= first) & (column < first + count)
        return ids, placeholders, None if prompts.equal_length else column > first + count

    def first_hidden(
        self, pixel_values: Float[Tensor, "N c H W"], prompts: Prompts
    ) -> Float[Tensor, "N D"]:
        raise TypeError(
            "what predicts the first token depends on how many there are: call the model"
        )

    def prefill(
        self,
        pixel_values: Float[Tensor, "N c H W"],
        prompts: Prompts,
        count: int,
        cache: KeyValueCache | None = None,
    ) -> tuple[Float[Tensor, "N D"], Decoding]:
        raise TypeError("all tokens are decided in one pass: call the model")
