"""A checkpoint of OpenVLA's architecture as a folder that vLLM reads.

vLLM's class fixes the sizes of the vision towers to those of openvla-7b and takes its configuration in Hugging Face's
words; on a CPU its attention has kernels for some head dimensions alone. What fits is linked, not copied. Where heads
are too narrow they are padded with zeros, which is the same function: rotary pair i of d / 2 goes to the place whose
wavelength is the same, and queries are multiplied by sqrt(D / d), since scores are divided by sqrt(D).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.config.openvla import OPENVLA_7B, LanguageConfig, ModelConfig, VisionTowerConfig
from vla_rl.policies.openvla.checkpoint import TOKENIZER_FILE, weights_of
from vla_rl.policies.openvla.loading import find_source, open_tokenizer
from vla_rl.policies.openvla.official_config import OFFICIAL_TOWERS
from vla_rl.policies.safetensors_files import (
    SHARD_BYTES,
    Stored,
    TensorEntry,
    save_sharded,
    stream_tensors,
)

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128)
"""For which vLLM's attention on a CPU has kernels (0.32)."""
_ATTENTION = tuple(f"{part}_proj.weight" for part in "qkvo")


def why_not_served(model: ModelConfig) -> str:
    """Why vLLM cannot serve a model of these sizes; empty where it can."""
    towers = {"dino": (model.dino, OPENVLA_7B.dino), "siglip": (model.siglip, OPENVLA_7B.siglip)}
    if model.image_size != OPENVLA_7B.image_size:
        return f"its images have {model.image_size} px"
    for name, (tower, official) in towers.items():
        if tower.stem_channels:
            return f"its tower {name} begins with convolutions"
        if tower_parts(tower) != tower_parts(official):
            return f"its tower {name} has other parts: {tower_parts(tower)} instead of {tower_parts(official)}"
    if model.language.padded_vocab <= model.language.text_vocab:
        return "its embedding has no row beyond the text vocabulary to stand for image patches"
    return ""


def require_served(model: ModelConfig) -> None:
    """Raise UserError for a model that vLLM does not serve."""
    reason = why_not_served(model)
    if reason:
        raise UserError(
            f"vLLM does not serve the model {model.name!r}: {reason}. It serves OpenVLA's own architecture alone "
            "(224 px, DINOv2 and SigLIP towers of 14 px patches, Llama), openvla-7b for example; take "
            "parallel.engine own"
        )


def served_head_dim(language: LanguageConfig, on_cpu: bool) -> int:
    """The head dimension that vLLM computes with, at least the model's. UserError where there is none."""
    own = language.hidden // language.heads
    if not on_cpu:
        return own
    for size in CPU_HEAD_DIMS:
        # a place for each pair must exist whose wavelength is the same
        if size >= own and (size // 2) % (own // 2) == 0:
            return size
    raise UserError(
        f"on a CPU vLLM's attention has kernels for head dimensions of {', '.join(map(str, CPU_HEAD_DIMS))}; the "
        f"model's is {own}, and cannot be padded to one of them: use a GPU, or parallel.engine own"
    )


class Staged:
    """What vLLM is given, and how tensors of OpenVLA's layout become those that it holds."""

    def __init__(self, checkpoint: Path, on_cpu: bool) -> None:
        """Look at a whole checkpoint. Raises UserError for one that is damaged, has adapters, or is not served."""
        source = find_source(checkpoint)
        if source.weights.adapters or source.description.lora is not None:
            raise UserError(
                f"{checkpoint} holds adapters, an engine serves whole models: "
                f"vla-rl export {checkpoint} --out FOLDER writes one"
            )
        self.model = source.description.model
        require_served(self.model)
        self.source = source
        self.folder = source.weights.folder
        self.tokenizer = open_tokenizer(source)
        self.entries: dict[str, TensorEntry] = weights_of(self.folder)
        self.head_dim = served_head_dim(self.model.language, on_cpu)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights as the checkpoint has them."""
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def stored(self) -> torch.dtype:
        """The precision of most of the weights."""
        kinds = [entry.dtype for entry in self.entries.values()]
        return max(set(kinds), key=kinds.count)

    @property
    def pads(self) -> bool:
        return self.head_dim != self.model.language.hidden // self.model.language.heads

    def write(self, out: Path) -> Path:
        """Write the folder for vLLM."""
        out.mkdir(parents=True)
        (out / "config.json").write_text(json.dumps(official_config(self.model, self.head_dim)))
        self.tokenizer.save(str(out / TOKENIZER_FILE))
        settings = _tokenizer_settings(self.tokenizer, self.model.language)
        (out / "tokenizer_config.json").write_text(json.dumps(settings))
        if not self.pads:
            for file in sorted({entry.file for entry in self.entries.values()}):
                (out / file.name).symlink_to(file.resolve())
            index = self.folder / "model.safetensors.index.json"
            if index.is_file():
                (out / index.name).symlink_to(index.resolve())
            return out
        tensors = self.fitted(dict(stream_tensors(self.entries)))
        plan = {name: Stored(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        save_sharded(plan, tensors.__getitem__, out, SHARD_BYTES)
        return out

    def fitted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with the head dimension that vLLM computes with."""
        if not self.pads:
            return dict(tensors)
        heads = self.model.language.heads
        return {name: pad_heads(name, t, heads, self.head_dim) for name, t in tensors.items()}


def pad_heads(name: str, weight: Tensor, heads: int, wanted: int) -> Tensor:
    """A weight of the language model's attention for heads of `wanted` numbers; any other as it is."""
    if not (name.startswith("language_model.") and name.endswith(_ATTENTION)):
        return weight
    own = weight.shape[-1 if name.endswith("o_proj.weight") else 0] // heads
    step = (wanted // 2) // (own // 2)
    pairs = torch.arange(own // 2) * step
    place = torch.cat([pairs, wanted // 2 + pairs])
    if name.endswith("o_proj.weight"):
        out = weight.new_zeros(weight.shape[0], heads, wanted)
        out[:, :, place] = weight.view(-1, heads, own)
        return out.view(weight.shape[0], -1)
    if name.endswith("q_proj.weight"):
        weight = math.sqrt(wanted / own) * weight.float()
    out = weight.new_zeros(heads, wanted, weight.shape[1])
    out[:, place] = weight.view(heads, own, -1)
    return out.view(heads * wanted, -1)


def official_config(model: ModelConfig, head_dim: int) -> dict[str, Any]:
    """config.json in the words of Hugging Face, whoever wrote the checkpoint."""
    language = model.language
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "image_sizes": [model.image_size, model.image_size],
        "timm_model_ids": list(OFFICIAL_TOWERS),
        "timm_override_act_layers": [None, None],
        "use_fused_vision_backbone": True,
        "image_token_index": language.padded_vocab - 1,
        "n_action_bins": model.action_bins,
        "text_config": {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": language.padded_vocab,
            "hidden_size": language.hidden,
            "intermediate_size": language.mlp_width,
            "num_hidden_layers": language.layers,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.heads,
            "head_dim": head_dim,
            "max_position_embeddings": language.max_positions,
            "rms_norm_eps": language.rms_norm_eps,
            "rope_theta": language.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": language.rope_theta},
            "bos_token_id": language.bos_token,
            "pad_token_id": language.pad_token,
            "tie_word_embeddings": False,
        },
    }


def _tokenizer_settings(tokenizer: Tokenizer, language: LanguageConfig) -> dict[str, Any]:
    bos = tokenizer.id_to_token(language.bos_token)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if bos is None else {"bos_token": bos}),
        "model_max_length": language.max_positions,
        "clean_up_tokenization_spaces": False,
    }


def tower_parts(tower: VisionTowerConfig) -> dict[str, Any]:
    """What a tower is made of, whatever its sizes."""
    names = ("patch_size", "class_token", "register_tokens", "layer_scale", "attention_pool")
    return {name: getattr(tower, name) for name in names}


def action_ids(model: ModelConfig) -> list[int]:
    """The vocabulary ids of actions."""
    text = model.language.text_vocab
    return list(range(text - model.action_bins, text))
