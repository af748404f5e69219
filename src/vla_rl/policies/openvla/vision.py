"""The two vision transformers of OpenVLA, with the parameter names of its official checkpoints.

timm's ViT in the variants DINOv2 (class and register tokens, LayerScale) and SigLIP (pooling head). Features are
the patch tokens of the second-to-last block, without a final norm; the last block, the norm and the pooling head
exist in checkpoints and take no part. A convolutional stem can replace the patch embedding in small towers.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vla_rl.config.openvla import ModelConfig, VisionTowerConfig
from vla_rl.policies import kernels
from vla_rl.policies.kernels import Linear

NORM_EPS = 1e-6


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Float[Tensor, "N S D"]) -> Float[Tensor, "N S D"]:
        return self.fc2(kernels.linear_gelu(self.fc1, x))


class Attention(nn.Module):
    """Self-attention over all tokens; rows of `qkv` are q, k, v, each split head by head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def mix(self, x: Float[Tensor, "N S D"]) -> Float[Tensor, "N S D"]:
        """Attention before the output projection."""
        n, s, d = x.shape
        q, k, v = self.qkv(x).view(n, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return kernels.attend(q, k, v).transpose(1, 2).reshape(n, s, d)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Float[Tensor, "N S D"]) -> Float[Tensor, "N S D"]:
        return x * self.scale_factor


class Block(nn.Module):
    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, config.heads)
        self.ls1 = LayerScale(width) if config.layer_scale else None
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, config.mlp_width)
        self.ls2 = LayerScale(width) if config.layer_scale else None

    def forward(self, x: Float[Tensor, "N S D"]) -> Float[Tensor, "N S D"]:
        mixed = self.attn.mix(self.norm1(x))
        if self.ls1 is None or self.ls2 is None:
            x = kernels.linear_add(self.attn.proj, mixed, x)
            hidden = kernels.linear_gelu(self.mlp.fc1, self.norm2(x))
            return kernels.linear_add(self.mlp.fc2, hidden, x)
        x = x + self.ls1(self.attn.proj(mixed))
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """SigLIP's pooling head: only its parameters are needed, to load and save official checkpoints."""

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, config.mlp_width)


class PatchEmbed(nn.Module):
    """Images to patch tokens: one strided convolution, or a stack of stride-2 ones with GELU between."""

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__()
        if not config.stem_channels:
            self.proj = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
            self.stem = None
            return
        channels = (3, *config.stem_channels, config.width)
        self.stem = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in itertools.pairwise(channels)
        )

    def forward(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N S D"]:
        if self.stem is None:
            return self.proj(pixels).flatten(2).transpose(1, 2)
        x = pixels.contiguous(memory_format=torch.channels_last)
        last = len(self.stem) - 1
        for i, conv in enumerate(self.stem):
            x = conv(x)
            if i < last:
                # torch's GELU is five times slower on a channels-last view than on the same memory seen as NHWC
                x = F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x.permute(0, 2, 3, 1).flatten(1, 2)


class VisionTransformer(nn.Module):
    """One tower; `forward` gives the patch features of the second-to-last block."""

    def __init__(self, config: VisionTowerConfig, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.prefix = int(config.class_token) + config.register_tokens
        patches = (image_size // config.patch_size) ** 2
        classes, registers = int(config.class_token), config.register_tokens
        # a parameter that is None takes no part in the state dict
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if classes else None
        self.reg_token = (
            nn.Parameter(torch.zeros(1, registers, config.width)) if registers else None
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, config.width))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn_pool = AttentionPool(config) if config.attention_pool else None
        self.recompute = False
        """Keep only each block's input for the backward pass."""

    def unused_parameters(self) -> list[nn.Parameter]:
        """Parameters that no gradient can reach: last block, final norm, pooling head."""
        pool = [] if self.attn_pool is None else list(self.attn_pool.parameters())
        return [*self.blocks[-1].parameters(), *self.norm.parameters(), *pool]

    def forward(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N S D"]:
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = [
            token.expand(len(x), -1, -1)
            for token in (self.cls_token, self.reg_token)
            if token is not None
        ]
        if prefix:
            x = torch.cat([*prefix, x], 1)
        for block in list(self.blocks)[:-1]:
            x = kernels.run_block(block, x, recompute=self.recompute)
        return x[:, self.prefix :]


class VisionBackbone(nn.Module):
    """Both towers on one image, features side by side: DINOv2's channels first, then SigLIP's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(config.dino, config.image_size)
        self.fused_featurizer = VisionTransformer(config.siglip, config.image_size)

    def forward(self, pixel_values: Float[Tensor, "N 6 H W"]) -> Float[Tensor, "N S D"]:
        return torch.cat(
            [self.featurizer(pixel_values[:, :3]), self.fused_featurizer(pixel_values[:, 3:])], -1
        )
