"""Sizes of an OpenVLA-class model. The 7B reference and the tiny default are two of these configs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from vla_rl.config.errors import require

LARGEST_SIZE = 2**20
"""Of a width or a number of positions: far beyond any model, and small enough to be computed with."""
LARGEST_VOCAB = 2**24
MOST_BLOCKS = 256
MOST_STEM = 8
LARGEST_PIXEL = 1000.0
LARGEST_IMAGE = 4096


def _require_size(what: str, value: int) -> None:
    require(1 <= value <= LARGEST_SIZE, f"{what} must lie in 1..{LARGEST_SIZE}, got {value}")


def _require_blocks(what: str, value: int) -> None:
    require(value <= MOST_BLOCKS, f"{what} must be at most {MOST_BLOCKS}, got {value}")


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
            _require_size(f"vision tower: {name}", getattr(self, name))
        require(
            0 <= self.register_tokens <= MOST_BLOCKS and len(self.stem_channels) <= MOST_STEM,
            f"vision tower: register_tokens {self.register_tokens} or a stem of {len(self.stem_channels)} is too many",
        )
        for channels in self.stem_channels:
            _require_size("vision tower: stem_channels", channels)
        _require_blocks("vision tower: depth", self.depth)
        require(
            self.width % self.heads == 0,
            f"vision tower: width {self.width} is no multiple of heads {self.heads}",
        )
        require(
            all(0 < std <= LARGEST_PIXEL for std in self.std)
            and all(abs(mean) <= LARGEST_PIXEL for mean in self.mean),
            f"vision tower: std must be positive and mean a share of white, got {self.std} and {self.mean}",
        )


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

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "mlp_width", "max_positions"):
            _require_size(f"language model: {name}", getattr(self, name))
        _require_blocks("language model: layers", self.layers)
        require(
            self.hidden % (2 * self.heads) == 0,
            f"language model: hidden {self.hidden} must divide into heads {self.heads} of an even width",
        )
        require(
            2 <= self.text_vocab <= self.padded_vocab <= LARGEST_VOCAB,
            f"language model: text_vocab {self.text_vocab} must fit in padded_vocab {self.padded_vocab}, which is at "
            f"most {LARGEST_VOCAB}",
        )
        for name in ("bos_token", "pad_token"):
            value = getattr(self, name)
            require(
                0 <= value < self.padded_vocab,
                f"language model: {name} must be an id in 0..{self.padded_vocab - 1}, got {value}",
            )
        require(
            0 < self.rms_norm_eps <= 1 and 1 <= self.rope_theta <= 1e12,
            f"language model: rms_norm_eps {self.rms_norm_eps} lies in (0, 1] and rope_theta {self.rope_theta} in "
            "[1, 1e12]",
        )


@dataclass(frozen=True)
class ImagePreprocessing:
    """What happens to a camera's frame before normalisation. By default nothing: frames come in the model's size."""

    fit: Literal["stretch", "pad", "crop"] = "stretch"
    """What happens first to a frame that is not square. pad: black bars, nothing is lost. crop: its middle square.
    stretch: `resize` takes it out of proportion."""
    jpeg: bool = False
    """Write the frame as a JPEG of quality 95 and read it back, as the model's training images were."""
    resize: Literal["none", "lanczos3"] = "none"
    """lanczos3: antialiased, to the model's size, with TensorFlow's arithmetic."""
    center_crop: float = 1.0
    """Share of the AREA kept in the middle and stretched back to full size; 0.9 for checkpoints that were trained with
    random crops of that size, 1 for none."""

    def __post_init__(self) -> None:
        require(
            self.fit in ("stretch", "pad", "crop"),
            f"images.fit is stretch, pad or crop, got {self.fit!r}",
        )
        require(
            self.resize in ("none", "lanczos3"),
            f"images.resize is none or lanczos3, got {self.resize!r}",
        )
        require(
            0 < self.center_crop <= 1,
            f"images.center_crop is a share of the area in (0, 1], got {self.center_crop}",
        )


OPENVLA_LIBERO_IMAGES = ImagePreprocessing(jpeg=True, resize="lanczos3", center_crop=0.9)
"""OpenVLA's evaluation on LIBERO (256 px frames, upright): openvla/openvla@c8f03f4, run_libero_eval.py."""
IMAGE_PREPROCESSING = {
    "as-is": ImagePreprocessing(),
    "openvla-libero": OPENVLA_LIBERO_IMAGES,
    "openvla-libero-uncropped": ImagePreprocessing(jpeg=True, resize="lanczos3"),
}
"""By name. Uncropped is for checkpoints that were trained without random crops."""


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
    images: ImagePreprocessing = field(default_factory=ImagePreprocessing)
    """What happens to a frame before the model sees it."""
    gripper: Literal["as-is", "openvla"] = "as-is"
    """What the last dimension of an action says. as-is: the simulator's own command. openvla: 0 closed to 1 open, as in
    OpenVLA's training data; LIBERO is told -1 to open and +1 to close, nothing between."""

    def __post_init__(self) -> None:
        require("{instruction}" in self.prompt, "model.prompt must contain {instruction}")
        require(
            "{" not in self.prompt.replace("{instruction}", "")
            and "}" not in self.prompt.replace("{instruction}", ""),
            f"model.prompt may have no other braces than those of {{instruction}}, got {self.prompt!r}",
        )
        require(
            1 <= self.image_size <= LARGEST_IMAGE,
            f"image_size must lie in 1..{LARGEST_IMAGE}, got {self.image_size}",
        )
        require(
            2 <= self.action_bins <= self.language.text_vocab,
            f"model.action_bins must fit in the text vocabulary of {self.language.text_vocab}, got {self.action_bins}",
        )
        first_action = self.language.text_vocab - self.action_bins
        require(
            self.final_prompt_token is None or 0 <= self.final_prompt_token < first_action,
            f"model.final_prompt_token must be the id of a text token, below {first_action}, got "
            f"{self.final_prompt_token}",
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
