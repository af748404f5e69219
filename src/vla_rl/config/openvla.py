"""Sizes of an OpenVLA-class model. The 7B reference and the tiny default are two of these configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from vla_rl.config.bounds import Config, Pixels, Positive, Whole
from vla_rl.config.errors import require

MOST_BLOCKS = 256
"""Of a tower or a language model: twice the deepest there are, and built in seconds without memory for weights."""
Depth = Annotated[int, Ge(1), Le(MOST_BLOCKS)]
Heads = Annotated[int, Ge(1), Le(1024)]
Width = Annotated[int, Ge(1), Le(2**17)]
MOST_STEM = 8
LONGEST_NAME, LONGEST_PROMPT = 255, 4000
LARGEST_PIXEL = 1000.0
Vocabulary = Annotated[int, Ge(1), Le(2**24)]


@dataclass(frozen=True)
class VisionTowerConfig(Config):
    """One vision transformer. Features are taken from the second-to-last block, without a final norm."""

    width: Width
    """Numbers per patch between the blocks."""
    depth: Depth
    """Blocks in the checkpoint; the last one is present but unused (as in OpenVLA)."""
    heads: Heads
    """Attention heads; they share out the width."""
    mlp_width: Width
    """Hidden width of each block's feed-forward layer."""
    patch_size: Pixels = 14
    """Height and width of a patch in pixels."""
    class_token: bool = False
    """A learned token before the patches, as in DINOv2; not among the features."""
    register_tokens: Annotated[int, Ge(0), Le(1024)] = 0
    """Learned tokens beside the class token (DINOv2 with registers has 4); not among the features."""
    layer_scale: bool = False
    """Each block's output is scaled by learned factors per channel, as in DINOv2."""
    attention_pool: bool = False
    """SigLIP's pooling head: present in official checkpoints, unused in the forward pass."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from red, green and blue in 0..1."""
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    """By which red, green and blue are then divided."""
    stem_channels: tuple[Width, ...] = ()
    """If given, a stack of stride-2 3x3 convolutions replaces the patch embedding; its total stride
    2 ** (len + 1) must equal patch_size. What lets a small tower learn from little data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.stem_channels) <= MOST_STEM,
            f"vision tower: a stem has at most {MOST_STEM} convolutions, got {len(self.stem_channels)}",
        )
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
class LanguageConfig(Config):
    """A causal Llama-style language model."""

    hidden: Width
    """Numbers per token between the layers."""
    layers: Depth
    """Decoder layers."""
    heads: Heads
    """Attention heads; they share out the hidden size."""
    mlp_width: Width
    """Hidden width of each layer's gated feed-forward part."""
    text_vocab: Vocabulary = 32000
    """Ids of the text tokenizer; the last `action_bins` of them are the action tokens."""
    padded_vocab: Vocabulary = 32064
    """Rows of the embedding and the output head."""
    rms_norm_eps: Positive = 1e-6
    """OpenVLA's official inference runs with 1e-6 although Llama-2 was trained with 1e-5."""
    rope_theta: Positive = 10000.0
    """Base of the rotary position embedding's wavelengths."""
    max_positions: Annotated[int, Ge(1), Le(2**24)] = 2048
    """Longest sequence in tokens, image patches and action tokens among them."""
    bos_token: Whole = 1
    """Id of the token that begins every sequence."""
    pad_token: Whole = 32000
    """Id of the token that fills up shorter prompts of a batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.hidden % (2 * self.heads) == 0,
            f"language model: hidden {self.hidden} must divide into heads {self.heads} of an even width",
        )
        require(
            self.text_vocab <= self.padded_vocab,
            f"language model: text_vocab {self.text_vocab} must fit in padded_vocab {self.padded_vocab}",
        )
        for name in ("bos_token", "pad_token"):
            value = getattr(self, name)
            require(
                value < self.padded_vocab,
                f"language model: {name} must be an id in 0..{self.padded_vocab - 1}, got {value}",
            )
        require(
            0 < self.rms_norm_eps <= 1 and 1 <= self.rope_theta <= 1e12,
            f"language model: rms_norm_eps {self.rms_norm_eps} lies in (0, 1] and rope_theta {self.rope_theta} in "
            "[1, 1e12]",
        )


@dataclass(frozen=True)
class ImagePreprocessing(Config, group="images"):
    """What happens to a camera's frame before normalisation. By default nothing: frames come in the model's size."""

    fit: Literal["stretch", "pad", "crop"] = "stretch"
    """What happens first to a frame that is not square. pad: black bars, nothing is lost. crop: its middle square.
    stretch: `resize` takes it out of proportion."""
    jpeg: bool = False
    """Write the frame as a JPEG of quality 95 and read it back, as the model's training images were."""
    resize: Literal["none", "lanczos3"] = "none"
    """lanczos3: antialiased, to the model's size, with TensorFlow's arithmetic."""
    center_crop: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of the AREA kept in the middle and stretched back to full size; 0.9 for checkpoints that were trained with
    random crops of that size, 1 for none."""


OPENVLA_LIBERO_IMAGES = ImagePreprocessing(jpeg=True, resize="lanczos3", center_crop=0.9)
"""OpenVLA's evaluation on LIBERO (256 px frames, upright): openvla/openvla@c8f03f4, run_libero_eval.py."""
IMAGE_PREPROCESSING = {
    "as-is": ImagePreprocessing(),
    "openvla-libero": OPENVLA_LIBERO_IMAGES,
    "openvla-libero-uncropped": ImagePreprocessing(jpeg=True, resize="lanczos3"),
}
"""By name. Uncropped is for checkpoints that were trained without random crops."""


@dataclass(frozen=True)
class ModelConfig(Config, group="model"):
    """A whole OpenVLA-class model."""

    name: str
    """What the model is called."""
    image_size: Pixels
    """Height and width of its images in pixels."""
    dino: VisionTowerConfig
    """The first vision tower; DINOv2 in OpenVLA."""
    siglip: VisionTowerConfig
    """The second vision tower; SigLIP in OpenVLA."""
    language: LanguageConfig
    """The language model."""
    action_bins: Annotated[int, Ge(2)] = 256
    """Values each number of an action can take, one token for each."""
    bin_style: Literal["centers", "grid"] = "centers"
    """centers: OpenVLA's, `bins` edges and bins - 1 centres. grid: `bins` values on linspace(-1, 1), ends exact."""
    prompt: str = "In: What action should the robot take to {instruction}?\nOut:"
    """What the model reads before it decides; {instruction} stands for the task."""
    final_prompt_token: Whole | None = 29871
    """Token appended to the prompt if it does not end with it (OpenVLA's empty token)."""
    images: ImagePreprocessing = field(default_factory=ImagePreprocessing)
    """What happens to a frame before the model sees it."""
    gripper: Literal["as-is", "openvla"] = "as-is"
    """What the last dimension of an action says. as-is: the simulator's own command. openvla: 0 closed to 1 open, as in
    OpenVLA's training data; LIBERO is told -1 to open and +1 to close, nothing between."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.name) <= LONGEST_NAME and len(self.prompt) <= LONGEST_PROMPT,
            f"model.name has at most {LONGEST_NAME} characters and model.prompt {LONGEST_PROMPT}, got "
            f"{len(self.name)} and {len(self.prompt)}",
        )
        require("{instruction}" in self.prompt, "model.prompt must contain {instruction}")
        require(
            "{" not in self.prompt.replace("{instruction}", "")
            and "}" not in self.prompt.replace("{instruction}", ""),
            f"model.prompt may have no other braces than those of {{instruction}}, got {self.prompt!r}",
        )
        require(
            self.action_bins <= self.language.text_vocab,
            f"model.action_bins = {self.action_bins} must fit in the text vocabulary of {self.language.text_vocab}",
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


def mini_model(image_size: int = 32) -> ModelConfig:
    """For simple scenes: learns the toy benchmark from random weights in seconds.

    Few and large patches: what is seen then weighs as much as the prompt from the first update on.
    """
    tower = VisionTowerConfig(
        width=64, depth=2, heads=4, mlp_width=128, patch_size=16, stem_channels=(8, 16, 32)
    )
    language = LanguageConfig(
        hidden=64, layers=1, heads=4, mlp_width=128, text_vocab=384, padded_vocab=448,
        max_positions=128, pad_token=384,
    )  # fmt: skip
    return tiny_model(
        image_size, name="mini", dino=tower, siglip=tower, language=language, action_bins=5
    )


SCRATCH_MODELS: dict[str, Callable[[int], ModelConfig]] = {"tiny": tiny_model, "mini": mini_model}
"""What `policy.scratch` names; each is given the image size."""
