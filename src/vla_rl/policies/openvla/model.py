"""The OpenVLA model: two vision towers, a projector, a causal language model, action tokens.

    column   0    1 .. P          P+1 .. P+L-1        P+L .. P+L+K-2
    content  BOS  patch features  rest of the prompt  action tokens 0 .. K-2

Logits of action token k stand at column P + L - 1 + k. Each row's action tokens follow its own prompt directly
and padding comes after them, so with causal attention and position = column no real token ever sees padding:
a batch of unequal prompts equals its rows run one by one, without any padding mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vla_rl.config.openvla import ModelConfig
from vla_rl.policies import kernels
from vla_rl.policies.critic import CriticSizes
from vla_rl.policies.kernels import Linear
from vla_rl.policies.openvla.language import Columns, KeyValueCache, LanguageModel
from vla_rl.policies.openvla.vision import VisionBackbone
from vla_rl.policies.prompts import Prompts


class Projector(nn.Module):
    """Patch features to the language model's width: three layers, GELU between them."""

    def __init__(self, vision_width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(vision_width, 4 * vision_width)
        self.fc2 = Linear(4 * vision_width, hidden)
        self.fc3 = Linear(hidden, hidden)

    def forward(self, x: Float[Tensor, "N P V"]) -> Float[Tensor, "N P D"]:
        return self.fc3(kernels.linear_gelu(self.fc2, kernels.linear_gelu(self.fc1, x)))


@dataclass
class Decoding:
    """State between `prefill` and the decode steps."""

    cache: KeyValueCache
    columns: Columns  # of the newest token


class OpenVLA(nn.Module):
    """Images and prompts to logits over the action bins.

    Action bin b is vocabulary id text_vocab - 1 - b (OpenVLA numbers its bins downwards from the end of the text
    vocabulary); logits come in the order of bins.
    """

    kind: ClassVar[str] = "openvla"
    """What class of policy plays it, see `PolicyConfig.kind`."""
    published_chunk: ClassVar[int] = 1
    """Actions of a turn in checkpoints that do not say it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(config.dino.width + config.siglip.width, config.language.hidden)
        self.language_model = LanguageModel(config.language)
        self.patches = (config.image_size // config.dino.patch_size) ** 2

    def freeze_unused(self) -> None:
        """Take parameters that no gradient can reach out of training."""
        for tower in (self.vision_backbone.featurizer, self.vision_backbone.fused_featurizer):
            for parameter in tower.unused_parameters():
                parameter.requires_grad_(False)

    def checkpoint_activations(self, on: bool) -> None:
        """Whether gradients are computed with the layers' inner activations made again instead of kept."""
        towers = self.vision_backbone.featurizer, self.vision_backbone.fused_featurizer
        for stack in (*towers, self.language_model.model):
            stack.recompute = on

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.lm_head.weight.dtype

    def vocabulary_ids(self, bins: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
        return self.config.language.text_vocab - 1 - bins

    def embed_images(self, pixel_values: Float[Tensor, "N 6 H W"]) -> Float[Tensor, "N P D"]:
        return self.projector(self.vision_backbone(pixel_values.to(self.dtype)))

    def action_logits(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows bins"]:
        """Float32 logits over the action bins 0..bins-1."""
        end = self.config.language.text_vocab
        return self.language_model.logits(hidden, end - self.config.action_bins, end).flip(-1)

    def _embed(
        self, images: Float[Tensor, "N P D"], ids: Int64[Tensor, "N L"]
    ) -> Float[Tensor, "N P_L D"]:
        text = self.language_model.model.embed_tokens(ids)
        return torch.cat([text[:, :1], images, text[:, 1:]], 1)

    def _asked(self, prompts: Prompts, count: int, images: int = 1) -> Columns:
        """The columns that predict the first `count` action tokens."""
        first = images * self.patches + prompts.lengths - 1
        if prompts.equal_length:
            return Columns(int(first[0]), count)
        index = torch.from_numpy(first[:, None] + np.arange(count)).to(prompts.ids.device)
        return Columns(0, count, index)

    def forward(
        self,
        pixel_values: Float[Tensor, "N 6 H W"],
        prompts: Prompts,
        bins: Int64[Tensor, "N K"],
    ) -> tuple[Float[Tensor, "N K bins"], Float[Tensor, "N D"]]:
        """Teacher-forced logits of all K action tokens, and the hidden state that predicts the first one."""
        count = bins.shape[1]
        given = self.vocabulary_ids(bins[:, :-1])
        if prompts.equal_length:
            ids = torch.cat([prompts.ids[:, : int(prompts.lengths[0])], given], 1)
        else:
            ids = torch.nn.functional.pad(
                prompts.ids, (0, count - 1), value=self.config.language.pad_token
            )
            places = torch.from_numpy(prompts.lengths[:, None] + np.arange(count - 1))
            ids = ids.scatter(1, places.to(ids.device), given)
        x = self._embed(self.embed_images(pixel_values), ids)
        hidden = self.language_model.model(x, Columns(0, x.shape[1]), self._asked(prompts, count))
        # not the method of the instance: sharded weights are put together around that, and they are here already
        return OpenVLA.action_logits(self, hidden), hidden[:, 0].clone()

    def first_hidden(
        self, pixel_values: Float[Tensor, "N 6 H W"], prompts: Prompts
    ) -> Float[Tensor, "N D"]:
        """The hidden state that predicts the first action token."""
        x = self._embed(self.embed_images(pixel_values), prompts.ids)
        return self.language_model.model(x, Columns(0, x.shape[1]), self._asked(prompts, 1))[
            :, 0
        ].clone()

    def prefill(
        self,
        pixel_values: Float[Tensor, "N 6 H W"],
        prompts: Prompts,
        count: int,
        cache: KeyValueCache | None = None,
    ) -> tuple[Float[Tensor, "N D"], Decoding]:
        """Run the prompts once, with room in the cache for `count` action tokens.

        A `cache` that is given must have that room; what it held is lost.
        """
        x = self._embed(self.embed_images(pixel_values), prompts.ids)
        n, length, _ = x.shape
        if cache is None:
            cache = KeyValueCache(self.config.language, n, length + count - 1, x.device, x.dtype)
        else:
            cache.clear(length)
        newest = self._asked(prompts, 1)
        hidden = self.language_model.model(x, Columns(0, length), newest, cache)
        return hidden[:, 0], Decoding(cache, newest)

    def decode(self, state: Decoding, bins: Int64[Tensor, " N"]) -> Float[Tensor, "N D"]:
        """Append one action token to every row; the hidden state that predicts the next one."""
        at = state.columns
        at = Columns(at.start + 1, 1, None if at.index is None else at.index + 1)
        state.columns = at
        x = self.language_model.model.embed_tokens(self.vocabulary_ids(bins))[:, None]
        return self.language_model.model(x, at, None, state.cache)[:, 0]


def critic_sizes(config: ModelConfig) -> CriticSizes:
    """What a critic must know of an OpenVLA."""
    return CriticSizes(config.language.hidden, config.image_size, config.language.padded_vocab)


def initialise(model: OpenVLA) -> None:
    """Random weights for training from scratch, from torch's global generator.

    Linear layers: truncated normal of standard deviation 0.64 / sqrt(inputs), which is the usual 0.02 at width
    1024; layers that write into a residual stream are scaled down by sqrt(2 * blocks) (GPT-2). Embeddings: 0.02.
    Stem and projector have no norms of their own and keep the variance instead (He et al. 2015): with torch's
    default for convolutions only about 5 % of the features' size depends on the image, and learning is slow.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            _truncated_normal(module.weight, _linear_std(model, name, module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            _truncated_normal(module.weight, 0.02)
    for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
        for parameter in _tokens(tower):
            _truncated_normal(parameter, 0.02)


def _truncated_normal(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def _linear_std(model: OpenVLA, name: str, inputs: int) -> float:
    if name.startswith("projector"):
        return math.sqrt(2 / inputs)
    std = 0.64 / math.sqrt(inputs)
    if name.endswith(("attn.proj", "mlp.fc2", "o_proj", "down_proj")):
        return std / math.sqrt(2 * _blocks_beside(model, name))
    return std


def _tokens(tower: nn.Module) -> Iterable[nn.Parameter]:
    names = ("cls_token", "reg_token", "pos_embed")
    return [p for name, p in tower.named_parameters(recurse=False) if name in names]


def _blocks_beside(model: OpenVLA, name: str) -> int:
    if name.startswith("language_model"):
        return len(model.language_model.model.layers)
    tower = model.vision_backbone.get_submodule(name.split(".")[1])
    return max(1, len(tower.get_submodule("blocks")._modules) - 1)
