"""OpenVLA's own config.json, vision.json and preprocessor_config.json as a `ModelConfig`.

Official files name the vision towers by timm model id and store the language model as a difference from the
defaults of Llama's configuration. What would change the computation and is not implemented is refused by its key.
Source: openvla/openvla@c8f03f4, prismatic/extern/hf/configuration_prismatic.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from vla_rl.config.errors import ConfigError, UserError
from vla_rl.config.openvla import (
    MOST_BLOCKS,
    OPENVLA_7B,
    LanguageConfig,
    ModelConfig,
    VisionTowerConfig,
)
from vla_rl.policies.statistics_files import DatasetStatistics
from vla_rl.runtime.external import parse_json, printable, read_json, shown

CONFIG_FILE = "config.json"
VISION_FILE = "vision.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
OFFICIAL_TOWERS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")
_EQUAL = 1e-6  # the processor writes its means both as given and rounded to float32

_Width = Annotated[int, Ge(1), Le(2**17)]
_Count = Annotated[int, Ge(1), Le(1024)]
_Blocks = Annotated[int, Ge(1), Le(MOST_BLOCKS)]
_Id = Annotated[int, Ge(0), Le(2**24)]
_Mean = tuple[float, float, float]
_Std = tuple[
    Annotated[float, Gt(0), Le(1e3)], Annotated[float, Gt(0), Le(1e3)], Annotated[float, Gt(0), Le(1e3)]
]  # fmt: skip


@dataclass(frozen=True)
class _Rotary:
    """How transformers 5 writes rope_theta and rope_scaling."""

    rope_type: Literal["default"] = "default"
    rope_theta: Annotated[float, Ge(1), Le(1e12)] | None = None


@dataclass(frozen=True)
class _Text:
    """Keys of transformers' LlamaConfig, with its defaults."""

    model_type: Literal["llama"] = "llama"
    vocab_size: Annotated[int, Ge(2), Le(2**24)] = 32000
    hidden_size: _Width = 4096
    intermediate_size: _Width = 11008
    num_hidden_layers: _Blocks = 32
    num_attention_heads: _Count = 32
    num_key_value_heads: _Count | None = None
    head_dim: _Width | None = None
    max_position_embeddings: Annotated[int, Ge(1), Le(2**20)] = 2048
    rms_norm_eps: Annotated[float, Gt(0), Le(1)] = 1e-6
    rope_theta: Annotated[float, Ge(1), Le(1e12)] = 10000.0
    rope_scaling: None = None
    rope_parameters: _Rotary = field(default_factory=_Rotary)
    hidden_act: Literal["silu", "swish"] = "silu"
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    tie_word_embeddings: Literal[False] = False


@dataclass(frozen=True)
class _Official:
    model_type: Literal["openvla"]
    text_config: _Text = field(default_factory=_Text)
    image_sizes: Annotated[tuple[_Width, ...], MinLen(1), MaxLen(2)] = (224, 224)
    n_action_bins: Annotated[int, Ge(2), Le(2**20)] = 256
    pad_to_multiple_of: _Id = 64
    pad_token_id: _Id = 32000
    timm_model_ids: tuple[str, ...] = ()
    use_fused_vision_backbone: Literal[True] = True
    norm_stats: dict[str, DatasetStatistics] | None = None


@dataclass(frozen=True)
class _Tower:
    embed_dim: _Width
    depth: _Blocks
    num_heads: _Count
    mlp_hidden: _Width
    patch_size: Annotated[int, Ge(1), Le(1024)]
    class_token: bool
    reg_tokens: Annotated[int, Ge(0), Le(1024)]
    layer_scale: bool


@dataclass(frozen=True)
class _Towers:
    featurizer: _Tower
    fused_featurizer: _Tower


@dataclass(frozen=True)
class _Normalisation:
    mean: _Mean
    std: _Std


@dataclass(frozen=True)
class _Preprocessor:
    means: tuple[_Mean, _Mean] | None = None
    stds: tuple[_Std, _Std] | None = None
    tvf_normalize_params: tuple[_Normalisation, _Normalisation] | None = None


def official_model(text: bytes, folder: Path) -> ModelConfig:
    """The model that `text`, the config.json in `folder`, describes. Raises UserError naming file and key."""
    path = folder / CONFIG_FILE
    config = parse_json(text, _Official, source=path)
    language = config.text_config
    heads = language.num_attention_heads
    if language.num_key_value_heads not in (None, heads):
        raise UserError(
            f"{path}: grouped-query attention ({language.num_key_value_heads} key-value heads for {heads} heads) is "
            "not supported; OpenVLA's language model has as many of each"
        )
    if language.head_dim not in (None, language.hidden_size // heads):
        raise UserError(
            f"{path}: text_config.head_dim {language.head_dim} is not hidden_size / num_attention_heads, "
            f"{language.hidden_size} / {heads}: such a language model is not supported"
        )
    if len(set(config.image_sizes)) != 1:
        raise UserError(
            f"{path}: image_sizes {config.image_sizes}: only square images are supported"
        )
    try:
        dino, siglip = normalised(_towers(config.timm_model_ids, folder), folder)
        return ModelConfig(
            name=_name(folder),
            image_size=config.image_sizes[0],
            dino=dino,
            siglip=siglip,
            language=LanguageConfig(
                hidden=language.hidden_size,
                layers=language.num_hidden_layers,
                heads=heads,
                mlp_width=language.intermediate_size,
                text_vocab=language.vocab_size - config.pad_to_multiple_of,
                padded_vocab=language.vocab_size,
                rms_norm_eps=language.rms_norm_eps,
                rope_theta=language.rope_parameters.rope_theta or language.rope_theta,
                max_positions=language.max_position_embeddings,
                pad_token=config.pad_token_id,
            ),
            action_bins=config.n_action_bins,
        )
    except ConfigError as error:
        raise UserError(
            f"{path} describes no model that can be built: {printable(str(error))}"
        ) from error


def _name(folder: Path) -> str:
    """The folder's name; of a snapshot in the hub's cache the repository's."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.resolve().name


def _towers(named: Sequence[str], folder: Path) -> tuple[VisionTowerConfig, VisionTowerConfig]:
    if (folder / VISION_FILE).is_file():
        sizes = read_json(folder / VISION_FILE, _Towers, inside=folder)
        return (
            _tower(sizes.featurizer, OPENVLA_7B.dino),
            _tower(sizes.fused_featurizer, OPENVLA_7B.siglip),
        )
    if tuple(named) != OFFICIAL_TOWERS:
        raise UserError(
            f"{folder / CONFIG_FILE} names the vision towers {shown(list(named))}; known are {OFFICIAL_TOWERS}. Give "
            f"the sizes of other towers in {VISION_FILE}"
        )
    return OPENVLA_7B.dino, OPENVLA_7B.siglip


def _tower(sizes: _Tower, like: VisionTowerConfig) -> VisionTowerConfig:
    return replace(
        like,
        width=sizes.embed_dim,
        depth=sizes.depth,
        heads=sizes.num_heads,
        mlp_width=sizes.mlp_hidden,
        patch_size=sizes.patch_size,
        class_token=sizes.class_token,
        register_tokens=sizes.reg_tokens,
        layer_scale=sizes.layer_scale,
    )


def check_preprocessor(folder: Path) -> _Preprocessor:
    """Read the image processor's file, an empty one if there is none. Raises UserError if it is damaged."""
    if not (folder / PREPROCESSOR_FILE).is_file():
        return _Preprocessor()
    return read_json(folder / PREPROCESSOR_FILE, _Preprocessor, inside=folder)


def normalised(
    towers: tuple[VisionTowerConfig, VisionTowerConfig], folder: Path
) -> tuple[VisionTowerConfig, VisionTowerConfig]:
    """The towers with the normalisation of preprocessor_config.json, as OpenVLA's processor applies it.

    `tvf_normalize_params` is what it uses, `means` and `stds` are what it was made from.
    """
    found = check_preprocessor(folder)
    means, stds = found.means, found.stds
    if found.tvf_normalize_params is not None:
        means = found.tvf_normalize_params[0].mean, found.tvf_normalize_params[1].mean
        stds = found.tvf_normalize_params[0].std, found.tvf_normalize_params[1].std
    dino, siglip = (
        replace(
            tower,
            mean=_unless_equal(tower.mean, means and means[i]),
            std=_unless_equal(tower.std, stds and stds[i]),
        )
        for i, tower in enumerate(towers)
    )
    return dino, siglip


def _unless_equal(usual: _Mean, found: _Mean | None) -> _Mean:
    if found is None or all(abs(a - b) < _EQUAL for a, b in zip(usual, found, strict=True)):
        return usual
    return found
