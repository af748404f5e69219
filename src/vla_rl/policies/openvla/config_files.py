"""The `config.json` of an OpenVLA checkpoint, official or ours, to the project's configuration and back.

Official files name the vision towers by timm model id and store the language model as a difference from the
defaults of Llama's configuration. Ours carry the same keys and a section `vla_rl` with the sizes in full, so that
models of any size load back.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_rl.config.errors import ConfigError, UserError, nearest
from vla_rl.config.old_names import renamed
from vla_rl.config.openvla import OPENVLA_7B, LanguageConfig, ModelConfig, VisionTowerConfig
from vla_rl.config.policy import CriticConfig, LoraConfig

CONFIG_FILE = "config.json"
STATISTICS_FILE = "dataset_statistics.json"
VISION_FILE = "vision.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
FORMAT = 1
COMPANIONS = (
    PREPROCESSOR_FILE,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)
"""What else an official folder holds and other software reads; copied, not interpreted."""
NOT_IN_SECTION = ("norm_stats", "extra", "files")

# defaults of transformers' LlamaConfig, from which official files store only the differences
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
OFFICIAL_TOWERS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder says about itself, weights aside."""

    model: ModelConfig
    norm_stats: dict[str, Any]
    action_dim: int
    action_chunk: int = 1
    unnorm_key: str | None = None
    critic: CriticConfig | None = None
    lora: LoraConfig | None = None
    base: str | None = None
    """Folder of the frozen base, for adapters on a base that is not stored along with them."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Keys of the official file that we keep as they are."""
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Small files beside config.json that go along unchanged, by name."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError if the file is missing, damaged, or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"No {path.name} in {path.parent}: this is not a policy checkpoint"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def from_dict(kind: type[Any], values: Any, where: str) -> Any:
    """Build a (nested) dataclass from JSON values; an unknown or missing field is a UserError."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a JSON object, got {values!r}")
    values = renamed(kind, values)
    known = {f.name: f for f in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise UserError(f"{where} has the unknown field {name!r}.{nearest(name, known)}")
    hints = typing.get_type_hints(kind)
    built = {name: _build(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return kind(**built)
    except (TypeError, ConfigError) as error:
        raise UserError(f"{where} is not a valid {kind.__name__}: {error}") from None


def _build(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type[Any], hint), value, where)
    return tuple(value) if isinstance(value, list) else value


def read_checkpoint_config(folder: Path) -> Checkpoint:
    """Read config.json (and what lies beside it). Raises UserError for anything that does not fit together.

    Statistics in dataset_statistics.json take the place of config.json's, as in OpenVLA's evaluation: fine-tuning
    writes the new dataset's there and leaves the pretraining's in config.json.
    """
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise UserError(
            f"No checkpoint folder at {folder}: expected a folder with {CONFIG_FILE}, or the id of a hub repository "
            "such as openvla/openvla-7b"
        )
    raw = read_json(path)
    norm_stats = raw.get("norm_stats") or {}
    extra = {key: value for key, value in raw.items() if key not in ("vla_rl", "norm_stats")}
    if (folder / STATISTICS_FILE).is_file():
        if norm_stats:
            extra["norm_stats"] = norm_stats
        norm_stats = read_json(folder / STATISTICS_FILE)
    if not isinstance(norm_stats, dict):
        raise UserError(
            f"{path}: norm_stats must be an object with one entry per dataset, got {norm_stats!r:.60}"
        )
    found = {name: folder / name for name in COMPANIONS}
    files = {name: file.read_bytes() for name, file in found.items() if file.is_file()}
    if "vla_rl" in raw:
        described = _own_format(raw["vla_rl"], norm_stats, extra, f"{path}: vla_rl")
        return dataclasses.replace(described, files=files)
    if raw.get("model_type") != "openvla":
        raise UserError(
            f"{path} describes a model of type {raw.get('model_type')!r}, expected 'openvla': "
            "only OpenVLA checkpoints can be loaded"
        )
    model = _official_model(raw, folder)
    return Checkpoint(model, norm_stats, _dimension(norm_stats), extra=extra, files=files)


def _own_format(
    section: Any, norm_stats: dict[str, Any], extra: dict[str, Any], where: str
) -> Checkpoint:
    if not isinstance(section, dict) or section.get("format") != FORMAT:
        found = section.get("format") if isinstance(section, dict) else section
        raise UserError(
            f"{where} has format {found!r}, this version reads format {FORMAT}: update vla-rl or the checkpoint"
        )
    values = {key: value for key, value in section.items() if key != "format"}
    return from_dict(Checkpoint, {**values, "norm_stats": norm_stats, "extra": extra}, where)


def _dimension(norm_stats: Mapping[str, Any]) -> int:
    """Action size by the statistics; 7 (OpenVLA's) if there are none."""
    for statistics in norm_stats.values():
        q01 = statistics.get("action", {}).get("q01")
        if q01:
            return len(q01)
    return 7


def _official_model(raw: dict[str, Any], folder: Path) -> ModelConfig:
    text = {**LLAMA_DEFAULTS, **raw.get("text_config", {})}
    heads = text["num_attention_heads"]
    if text.get("num_key_value_heads", heads) != heads:
        raise UserError(
            f"{folder / CONFIG_FILE}: grouped-query attention ({text['num_key_value_heads']} key-value heads for "
            f"{heads} heads) is not supported; OpenVLA's language model has as many of each"
        )
    dino, siglip = _towers(raw, folder)
    return ModelConfig(
        name=_name(folder),
        image_size=int(raw.get("image_sizes", [224])[0]),
        dino=dino,
        siglip=siglip,
        language=LanguageConfig(
            hidden=text["hidden_size"],
            layers=text["num_hidden_layers"],
            heads=heads,
            mlp_width=text["intermediate_size"],
            text_vocab=text["vocab_size"] - int(raw.get("pad_to_multiple_of", 64)),
            padded_vocab=text["vocab_size"],
            rms_norm_eps=text["rms_norm_eps"],
            rope_theta=text["rope_theta"],
            max_positions=text["max_position_embeddings"],
            pad_token=int(raw.get("pad_token_id", 32000)),
        ),
        action_bins=int(raw.get("n_action_bins", 256)),
    )


def _name(folder: Path) -> str:
    """The folder's name; of a snapshot in the hub's cache the repository's."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.resolve().name


def _towers(raw: dict[str, Any], folder: Path) -> tuple[VisionTowerConfig, VisionTowerConfig]:
    path = folder / VISION_FILE
    if path.is_file():
        sizes = read_json(path)
        try:
            return (
                _tower(sizes["featurizer"], OPENVLA_7B.dino),
                _tower(sizes["fused_featurizer"], OPENVLA_7B.siglip),
            )
        except KeyError as error:
            raise UserError(f"{path} has no entry {error}") from None
    found = tuple(raw.get("timm_model_ids", ()))
    if found != OFFICIAL_TOWERS:
        raise UserError(
            f"{folder / CONFIG_FILE} names the vision towers {found}; known are {OFFICIAL_TOWERS}. Give the sizes "
            f"of other towers in {VISION_FILE}"
        )
    return OPENVLA_7B.dino, OPENVLA_7B.siglip


def _tower(sizes: dict[str, Any], like: VisionTowerConfig) -> VisionTowerConfig:
    return dataclasses.replace(
        like,
        width=sizes["embed_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        mlp_width=sizes["mlp_hidden"],
        patch_size=sizes["patch_size"],
        class_token=sizes["class_token"],
        register_tokens=sizes["reg_tokens"],
        layer_scale=sizes["layer_scale"],
    )


def write_checkpoint_config(folder: Path, checkpoint: Checkpoint) -> None:
    """Write config.json, dataset_statistics.json and preprocessor_config.json in the official layout."""
    model = checkpoint.model
    language = model.language
    official = {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "image_sizes": [model.image_size, model.image_size],
        "n_action_bins": model.action_bins,
        "pad_to_multiple_of": language.padded_vocab - language.text_vocab,
        "pad_token_id": language.pad_token,
        "use_fused_vision_backbone": True,
        "text_config": {
            "model_type": "llama",
            "hidden_size": language.hidden,
            "intermediate_size": language.mlp_width,
            "num_hidden_layers": language.layers,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.heads,
            "vocab_size": language.padded_vocab,
            "rms_norm_eps": language.rms_norm_eps,
            "rope_theta": language.rope_theta,
            "max_position_embeddings": language.max_positions,
            "pad_token_id": language.pad_token,
        },
    }
    own = dataclasses.asdict(checkpoint)
    own = {key: value for key, value in own.items() if key not in NOT_IN_SECTION}
    content = {
        **official,
        **checkpoint.extra,
        # datasets of the pretraining stay named here, for readers that look into config.json alone
        "norm_stats": {**checkpoint.extra.get("norm_stats", {}), **checkpoint.norm_stats},
        "vla_rl": {"format": FORMAT, **own},
    }
    write_json(folder / CONFIG_FILE, content)
    write_json(folder / STATISTICS_FILE, checkpoint.norm_stats)
    for name, companion in checkpoint.files.items():
        (folder / name).write_bytes(companion)
    if PREPROCESSOR_FILE in checkpoint.files:
        return
    size = model.image_size
    write_json(
        folder / PREPROCESSOR_FILE,
        {
            "image_processor_type": "PrismaticImageProcessor",
            "image_resize_strategy": "resize-naive",
            "input_sizes": [[3, size, size]] * 2,
            "interpolations": ["bicubic"] * 2,
            "means": [model.dino.mean, model.siglip.mean],
            "stds": [model.dino.std, model.siglip.std],
            "use_fused_vision_backbone": True,
        },
    )


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
