"""Value functions: a head on the policy's hidden state, or a small convolutional network of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from vla_rl.config.policy import CriticConfig
from vla_rl.policies.kernels import Linear
from vla_rl.policies.prompts import Prompts

TEXT_WIDTH = 32
TIME_FEATURES = 8


def time_features(fraction: Float32[Tensor, " N"]) -> Float32[Tensor, "N F"]:
    """cos(pi k t) for k = 1..F: a single number among hundreds of features of the image is learned too slowly."""
    waves = torch.arange(1, TIME_FEATURES + 1, device=fraction.device)
    return torch.cos(torch.pi * fraction[:, None] * waves)


@dataclass(frozen=True)
class CriticInput:
    """What a critic may look at. Fields that a kind of critic does not use may be None."""

    time_fraction: Float32[Tensor, " N"]
    hidden: Float[Tensor, "N D"] | None = None  # predicts the first action token
    raw_pixels: Float32[Tensor, "N 3 H W"] | None = None  # 0..255
    prompts: Prompts | None = None


@dataclass(frozen=True)
class CriticSizes:
    """What a critic must know of the policy it belongs to."""

    hidden: int
    """Width of the hidden state that predicts the first action token."""
    image_size: int
    """Side of the images, pixels."""
    vocabulary: int
    """Ids that prompts may hold are below it."""


class SharedCritic(nn.Module):
    """V from the hidden state that predicts the first action token, normalised without learned scale."""

    def __init__(self, config: CriticConfig, sizes: CriticSizes) -> None:
        super().__init__()
        self.time = config.time_fraction
        width = sizes.hidden
        inner = min(width, 512)
        self.fc1 = Linear(width + TIME_FEATURES * int(self.time), inner)
        self.fc2 = Linear(inner, 1)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: CriticInput) -> Float[Tensor, " N"]:
        assert x.hidden is not None
        hidden = F.layer_norm(x.hidden.to(self.fc1.weight.dtype), x.hidden.shape[-1:])
        if self.time:
            hidden = torch.cat([hidden, time_features(x.time_fraction).to(hidden.dtype)], 1)
        return self.fc2(F.gelu(self.fc1(hidden)))[:, 0]


class SeparateCritic(nn.Module):
    """V from the image (three convolutions) and the mean of a small embedding of the prompt's tokens."""

    def __init__(self, config: CriticConfig, sizes: CriticSizes) -> None:
        super().__init__()
        self.time = config.time_fraction
        c = config.width
        self.conv1 = nn.Conv2d(3, c, 4, stride=4)
        self.conv2 = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * c, 2 * c, 3, stride=2, padding=1)
        side = ((sizes.image_size // 4 + 1) // 2 + 1) // 2
        self.text = nn.Embedding(sizes.vocabulary, TEXT_WIDTH)
        features = 2 * c * side * side + TEXT_WIDTH + TIME_FEATURES * int(self.time)
        self.fc1 = Linear(features, 128)
        self.fc2 = Linear(128, 128)
        self.fc3 = Linear(128, 1)

    def forward(self, x: CriticInput) -> Float[Tensor, " N"]:
        assert x.raw_pixels is not None
        assert x.prompts is not None
        # pixels / 127.5 - 1 folded into the convolution (exact: it has no padding), saving two passes over them
        weight, bias = self.conv1.weight, self.conv1.bias
        assert bias is not None
        bias = bias - weight.sum((1, 2, 3))
        h = F.relu(F.conv2d(x.raw_pixels.to(weight.dtype), weight / 127.5, bias, stride=4))
        h = F.relu(self.conv3(F.relu(self.conv2(h))))
        parts = [h.permute(0, 2, 3, 1).flatten(1), self._text(x.prompts)]
        if self.time:
            parts.append(time_features(x.time_fraction).to(h.dtype))
        h = F.relu(self.fc1(torch.cat(parts, 1)))
        return self.fc3(F.relu(self.fc2(h)))[:, 0]

    def _text(self, prompts: Prompts) -> Float[Tensor, "N T"]:
        """Mean over the prompt's own tokens, padding left out."""
        embedded = self.text(prompts.ids)
        if prompts.equal_length:
            return embedded[:, : int(prompts.lengths[0])].mean(1)
        lengths = torch.from_numpy(prompts.lengths).to(embedded.device)[:, None]
        real = torch.arange(embedded.shape[1], device=embedded.device) < lengths
        return (embedded * real[..., None]).sum(1) / lengths


class NoCritic(nn.Module):
    """What stands where there is no value function."""

    def forward(self, x: CriticInput) -> None:
        return None


def build_critic(
    config: CriticConfig, sizes: CriticSizes
) -> SharedCritic | SeparateCritic | NoCritic:
    """A freshly initialised critic, float32, from torch's global generator."""
    if config.kind == "none":
        return NoCritic()
    kind = SharedCritic if config.kind == "shared" else SeparateCritic
    return kind(config, sizes)
