"""Sizes of an OpenVLA-class model. The 7B reference and the tiny default are two of these configs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from vla_rl.config.errors import require


@dataclass(frozen=True)
class VisionTowerConfig:
    """One vision transformer. Features are taken from the second-to-last block, without a final norm."""

    width: int
    depth: int
    """Blocks in the checkpoint; the last one is present but unused (as in OpenVLA)."""
    heads: int
    mlp_width: int
    patch_size: int = 14
    class_token: bool = False
    register_tokens: int = 0
    layer_scale: bool = False
    attention_pool: bool = False
    """SigLIP's pooling head: present in official checkpoints, unused in the forward pass."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    stem_channels: tuple[int, ...] = ()
    """If given, a stack of stride-2 3x3 convolutions replaces the patch embedding; its total stride
    2 ** (len + 1) must equal patch_size. What lets a small tower learn from little data."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "mlp_width", "patch_size"):
            value = getattr(self, name)
            require(value >= 1, f"vision tower: {name} must be at least 1, got {value}")


@dataclass(frozen=True)
class LanguageConfig:
    """A causal Llama-style language model."""

    hidden: int
    layers: int
    heads: int
    mlp_width: int
    text_vocab: int = 32000
    """Ids of the text tokenizer; the last `action_bins` of them are the action tokens."""
    padded_vocab: int = 32064
    """Rows of the embedding and the output head."""
    rms_norm_eps: float = 1e-6
    """OpenVLA's official inference runs with 1e-6 although Llama-2 was trained with 1e-5."""
    rope_theta: float = 10000.0
    max_positions: int = 2048
    bos_token: int = 1
    pad_token: int = 32000


@dataclass(frozen=True)
class ModelConfig:
    """A whole OpenVLA-class model."""

    name: str
    image_size: int
    dino: VisionTowerConfig
    siglip: VisionTowerConfig
    language: LanguageConfig
    action_bins: int = 256
    bin_style: Literal["centers", "grid"] = "centers"
    """centers: OpenVLA's, `bins` edges and bins - 1 centres. grid: `bins` values on linspace(-1, 1), ends exact."""
    prompt: str = "In: What action should the robot take to {instruction}?\nOut:"
    final_prompt_token: int | None = 29871
    """Token appended to the prompt if it does not end with it (OpenVLA's empty token)."""

    def __post_init__(self) -> None:
        require("{instruction}" in self.prompt, "model.prompt must contain {instruction}")
        require(
            2 <= self.action_bins <= self.language.text_vocab,
            "model.action_bins must fit in the text vocabulary",
        )
        for tower in (self.dino, self.siglip):
            require(
                self.image_size % tower.patch_size == 0,
                f"image_size {self.image_size} is no multiple of patch_size {tower.patch_size}",
            )
            stride = 2 ** (len(tower.stem_channels) + 1)
            require(
                not tower.stem_channels or stride == tower.patch_size,
                f"a stem of {len(tower.stem_channels)} + 1 stride-2 convolutions needs patch_size "
                f"{stride}, got {tower.patch_size}",
            )
        require(
            self.image_size // self.dino.patch_size == self.image_size // self.siglip.patch_size,
            "both vision towers must give the same number of patches",
        )


OPENVLA_7B = ModelConfig(
    name="openvla-7b",
    image_size=224,
    dino=VisionTowerConfig(
        width=1024, depth=24, heads=16, mlp_width=4096, class_token=True, register_tokens=4,
        layer_scale=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    ),
    siglip=VisionTowerConfig(width=1152, depth=27, heads=16, mlp_width=4304, attention_pool=True),
    language=LanguageConfig(hidden=4096, layers=32, heads=32, mlp_width=11008),
)  # fmt: skip
"""OpenVLA-7B: DINOv2-L/14 with registers + SigLIP-So400m/14 + Llama-2-7B (arXiv 2406.09246)."""


def tiny_model(image_size: int = 64, **changes: object) -> ModelConfig:
    """The laptop default: same class, 64 px, conv stems, 32 action values. Trains on two CPU cores."""
    tower = VisionTowerConfig(
        width=64, depth=2, heads=4, mlp_width=256, patch_size=16, stem_channels=(16, 32, 64)
    )
    config = ModelConfig(
        name="tiny",
        image_size=image_size,
        dino=replace(tower, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        siglip=tower,
        language=LanguageConfig(
            hidden=128, layers=2, heads=4, mlp_width=344, text_vocab=512, padded_vocab=576,
            max_positions=256, pad_token=512,
        ),
        action_bins=32,
        bin_style="grid",
        prompt="In: {instruction}?\nOut:",
        final_prompt_token=None,
    )  # fmt: skip
    return replace(config, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters through peft; the base stays frozen and is the KL reference."""

    rank: int = 32
    alpha: int = 16
    dropout: float = 0.0
    vision: bool = False
    """Also adapt the linear layers of both vision towers."""


@dataclass(frozen=True)
class CriticConfig:
    """The value function."""

    kind: Literal["shared", "separate"] = "separate"
    """shared: a head on the policy's hidden state that predicts the first action token. separate: a small
    convolutional network of its own."""
    time_fraction: bool = True
    """The critic sees which share of the horizon has passed (the policy never does)."""
    width: int = 16
    """Channels of the separate critic's first convolution."""
    detach: bool = False
    """shared only: the value loss never reaches the trunk, not only during warm-up."""


@dataclass(frozen=True)
class PolicyConfig:
    """Which policy to train, and what of it."""

    checkpoint: str = ""
    """Folder of the pretrained policy; empty builds the tiny one from scratch (SFT only)."""
    lora: LoraConfig | None = None
    """Adapters instead of training all weights."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    device: str = "auto"
    """auto takes CUDA where there is a GPU, else the CPU."""
