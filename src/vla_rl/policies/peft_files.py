"""Low-rank adapters on disk in PEFT's format, read without peft.

    adapter_config.json          rank, alpha, which layers, on which base
    adapter_model.safetensors    base_model.model.<layer>.lora_A.weight and lora_B.weight

An adapter folder stands for a model of its own: its base with W + (alpha / rank) B A. OpenVLA's fine-tuning script
puts adapters on every linear layer, output head, projector and patch embedding (a convolution) included. So a
folder in this format is merged when it is loaded, in float32 and tensor by tensor; what PPO then trains is a new
adapter on the merged model, and switching that one off gives the fine-tuned policy, which is what KL refers to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.config.policy import LoraConfig
from vla_rl.policies.safetensors_files import (
    TensorEntry,
    read_header,
    read_tensors,
    save_tensors,
    tensor_name,
)
from vla_rl.runtime.bases import ADAPTER_CONFIG_FILE, base_reference, named_base
from vla_rl.runtime.external import path_inside, read_json, shown
from vla_rl.runtime.hub import hub_id

ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
LARGEST_PRODUCT = 1e30
STORED_WHOLE = (
    "embed_tokens.weight",
    "lm_head.weight",
    "embed_tokens.base_layer.weight",
    "lm_head.base_layer.weight",
)
_NAMED = re.compile(r"\.(lora_[AB])\.([^.]+)\.weight$")

# What else peft's LoraConfig may hold (0.21). These only say where adapters are, how they were trained or made.
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "peft_type", "peft_version", "revision", "task_type", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "init_lora_weights", "megatron_config", "megatron_core", "eva_config", "runtime_config",
    "loftq_config", "corda_config", "lora_ga_config", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
_REFUSED = {
    "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias", "layer_replication",
    "trainable_token_indices", "target_parameters", "use_qalora", "alora_invocation_tokens", "arrow_config",
}  # fmt: skip
_LEAVES_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that change no weight of the base."""


@dataclass(frozen=True)
class _Settings:
    """Keys of adapter_config.json by which the adapters are merged."""

    peft_type: str
    r: Annotated[int, Ge(1), Le(2**16)]
    lora_alpha: Annotated[float, Gt(0), Le(1e6)]
    use_rslora: bool | None = None
    init_lora_weights: bool | str | None = True


@dataclass(frozen=True)
class StoredAdapter:
    """Adapters read from a folder."""

    folder: Path
    base: str
    """Folder or hub id of the model they belong to, as the file names it; may be empty."""
    rank: int
    scale: float
    tensors: dict[str, Tensor] = field(repr=False)
    """By name in the model, `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    whole: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """Weights that take the base's place, by name: peft stores embedding and output head whole where one of them has
    an adapter."""

    @property
    def layers(self) -> list[str]:
        return [name.removesuffix(".lora_A.weight") for name in self.tensors if ".lora_A." in name]

    def check(self, entries: Mapping[str, TensorEntry]) -> None:
        """Raise UserError unless there is a weight of the right shape for every adapter."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.whole.items()}
        for layer in self.layers:
            down, up = self._pair(layer)
            shapes[f"{layer}.weight"] = (up.shape[0], *down.shape[1:])
        for name, shape in shapes.items():
            layer = name.removesuffix(".weight")
            if name not in entries:
                raise UserError(
                    f"{self.folder} adapts the layer {tensor_name(layer)}, which its base does not have: it belongs to "
                    "another model"
                )
            if shape != entries[name].shape:
                raise UserError(
                    f"{self.folder} adapts {tensor_name(layer)} as a weight of shape {shape}, the base's has "
                    f"{entries[name].shape}: it belongs to another model"
                )

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """The tensor `name` of the base with its adapter added, in float32; unchanged where there is none."""
        layer = name.removesuffix(".weight")
        weight = self.whole[name].to(weight.device) if name in self.whole else weight
        if f"{layer}.lora_A.weight" not in self.tensors:
            return weight
        down, up = self._pair(layer)
        return merged_weight(weight, down.to(weight.device), up.to(weight.device), self.scale)

    def _pair(self, layer: str) -> tuple[Tensor, Tensor]:
        return self.tensors[f"{layer}.lora_A.weight"], self.tensors[f"{layer}.lora_B.weight"]


def merged_weight(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale B A in float32; of a convolution's A every tap counts as an input of its own."""
    product = up.float().flatten(1) @ down.float().flatten(1)
    return weight.float() + scale * product.view(weight.shape)


def read_adapter(folder: Path) -> StoredAdapter:
    """Read a folder in PEFT's format. Raises UserError for damaged files and for adapters that cannot be merged."""
    path = folder / ADAPTER_CONFIG_FILE
    config = read_json(path, inside=folder)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path} describes adapters of type {shown(kind)}, expected 'LORA'")
    settings = read_json(path, _Settings, inside=folder)
    _require_plain(config, settings, path)
    file = path_inside(folder, ADAPTER_FILE, source=folder)
    if not file.is_file():
        pickled = folder / "adapter_model.bin"
        more = (
            f"; {pickled.name} is a pickle file, which can run any code and is not read: save the adapter with "
            "safe_serialization"
            if pickled.is_file()
            else ""
        )
        raise UserError(f"{file} is missing: the adapter in {folder} is incomplete{more}")
    stored = read_tensors([file])
    named = without_adapter_name(strip_prefix(stored), file)
    whole = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in named.items()
        if name.endswith(STORED_WHOLE)
    }
    tensors = {
        name: tensor.float() for name, tensor in named.items() if not name.endswith(STORED_WHOLE)
    }
    if len(whole) + len(tensors) < len(stored):
        raise UserError(f"{file} holds the same tensor under two names: save the adapter again")
    rank, alpha = settings.r, settings.lora_alpha
    _require_pairs(tensors, rank, file)
    _require_sane(tensors, alpha * rank, file)
    scale = alpha / rank**0.5 if settings.use_rslora else alpha / rank
    return StoredAdapter(folder, named_base(folder), rank, scale, tensors, whole)


def adapter_entries(folder: Path) -> dict[str, TensorEntry]:
    """What the file of adapters holds, by its own names."""
    return read_header(path_inside(folder, ADAPTER_FILE, source=folder))


def _require_plain(config: Mapping[str, Any], settings: _Settings, path: Path) -> None:
    """Only additive low-rank adapters of one rank on an unchanged base can be merged by W + scale B A.

    A setting of peft that is not known here is refused if it is switched on: it may be the next that changes weights.
    """
    used = [
        name
        for name, value in config.items()
        if (name in _REFUSED and value)
        or (name not in _NEUTRAL and (value is True or (isinstance(value, list | dict) and value)))
    ]
    if config.get("bias") not in ("none", None):
        used.append("bias")
    if used:
        raise UserError(
            f"{path} uses {', '.join(map(_printed, used))}, which is not supported: merge the adapter with peft "
            "(merge_and_unload) and load the merged checkpoint"
        )
    if settings.init_lora_weights not in _LEAVES_BASE:
        raise UserError(
            f"{path}: init_lora_weights is {shown(settings.init_lora_weights)}: such adapters belong to a base whose "
            "weights were changed when they were made, and merging them into the original one would be wrong. Merge "
            "them with peft (merge_and_unload) and load the merged checkpoint, or save them converted to plain LoRA "
            "(path_initial_model_for_weight_conversion)"
        )


def _printed(name: str) -> str:
    return shown(name).strip('"')


def without_adapter_name(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Names as peft's files have them; its state dict has the adapter's name in `lora_A.<adapter>.weight` as well.

    Raises UserError if there are adapters of several names.
    """
    found = {name: _NAMED.search(name) for name in tensors}
    adapters = sorted({match[2] for match in found.values() if match})
    plain = any(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)
    if len(adapters) + plain > 1:
        names = [*map(shown, adapters), *(["one without a name"] if plain else [])]
        raise UserError(
            f"{file} holds several adapters ({', '.join(names[:4])}), expected one: save the one that is meant alone"
        )
    return {
        f"{name[: match.start()]}.{match[1]}.weight" if match else name: tensors[name]
        for name, match in found.items()
    }


def _require_pairs(tensors: Mapping[str, Tensor], rank: int, file: Path) -> None:
    for name, tensor in tensors.items():
        other = tensors.get(name.replace(".lora_A.", ".lora_B."))
        if ".lora_A." in name and other is not None:
            # of a convolution A has its taps, and B has one
            sizes = tensor.dim() == other.dim() in (2, 4) and other[0, 0].numel() == 1
            if sizes and tensor.shape[0] == other.shape[1] == rank:
                continue
            raise UserError(
                f"{file}: {shown(name)} has shape {tuple(tensor.shape)} and its partner {tuple(other.shape)}, "
                f"expected rank {rank}"
            )
        if ".lora_B." in name and name.replace(".lora_B.", ".lora_A.") in tensors:
            continue
        raise UserError(
            f"{file} holds {tensor_name(name)}, expected pairs of lora_A and lora_B weights alone"
        )
    if not tensors:
        raise UserError(f"{file} holds no adapters")


def _require_sane(tensors: Mapping[str, Tensor], factor: float, file: Path) -> None:
    """Raise UserError for factors whose product could leave float32."""
    for name, tensor in tensors.items():
        if ".lora_A." not in name:
            continue
        partner = tensors[name.replace(".lora_A.", ".lora_B.")]
        largest = float(tensor.abs().max()), float(partner.abs().max())
        if factor * largest[0] * largest[1] > LARGEST_PRODUCT:
            raise UserError(
                f"{file}: {tensor_name(name)} and its partner hold weights of up to {largest[0]:.1g} and "
                f"{largest[1]:.1g}: they are damaged, or the run that wrote them diverged"
            )


def strip_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as in the model; peft puts `base_model.model.` before them."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def write_adapter(folder: Path, config: LoraConfig, state: Mapping[str, Tensor], base: str) -> None:
    """Write adapters (`<layer>.lora_A.weight`, `<layer>.lora_B.weight`) so that peft and `read_adapter` load them.

    base: folder or hub id of the model they belong to; what is written of it holds no path of this machine.
    """
    reference = base_reference(base, folder)
    repository = hub_id(reference)
    layers = sorted(name.removesuffix(".lora_A.weight") for name in state if ".lora_A." in name)
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": (repository[0] if repository else reference) or None,
        "revision": repository[1] if repository else None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": layers,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / ADAPTER_CONFIG_FILE).write_text(text, encoding="utf-8")
    save_tensors(dict(_with_prefix(state)), folder / ADAPTER_FILE)


def _with_prefix(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state.items():
        yield PREFIX + name, tensor
