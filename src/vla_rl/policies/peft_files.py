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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.config.policy import LoraConfig
from vla_rl.policies.safetensors_files import TensorEntry, read_tensors, save_tensors
from vla_rl.runtime.files import read_json

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
STORED_WHOLE = (
    "embed_tokens.weight",
    "lm_head.weight",
    "embed_tokens.base_layer.weight",
    "lm_head.base_layer.weight",
)


def is_adapter_folder(folder: Path) -> bool:
    """Whether the folder holds adapters alone, in PEFT's format (and is no checkpoint of a training run of ours)."""
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        return False
    config = folder / "config.json"
    return not config.is_file() or "vla_rl" not in read_json(config)


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
                    f"{self.folder} adapts the layer {layer!r}, which its base does not have: it belongs to another "
                    "model"
                )
            if shape != entries[name].shape:
                raise UserError(
                    f"{self.folder} adapts {layer!r} as a weight of shape {shape}, the base's has "
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
    config = read_json(path)
    _require_plain(config, path)
    file = folder / ADAPTER_FILE
    if not file.is_file():
        pickled = folder / "adapter_model.bin"
        more = (
            f"; {pickled.name} is a pickle file, which can run any code and is not read: save the adapter with "
            "safe_serialization"
            if pickled.is_file()
            else ""
        )
        raise UserError(f"{file} is missing: the adapter in {folder} is incomplete{more}")
    named = strip_prefix(read_tensors([file]))
    whole = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in named.items()
        if name.endswith(STORED_WHOLE)
    }
    tensors = {
        name: tensor.float() for name, tensor in named.items() if not name.endswith(STORED_WHOLE)
    }
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or rank < 1:
        raise UserError(f"{path} must give the rank r and lora_alpha, got {rank!r} and {alpha!r}")
    _require_pairs(tensors, rank, file)
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    base = str(config.get("base_model_name_or_path") or "")
    return StoredAdapter(folder, base, rank, scale, tensors, whole)


def _require_plain(config: Mapping[str, Any], path: Path) -> None:
    """Only additive low-rank adapters of one rank can be merged by W + scale B A."""
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{path} describes adapters of type {config.get('peft_type')!r}, expected 'LORA'"
        )
    switches = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
    used = [name for name in switches if config.get(name)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if used:
        raise UserError(
            f"{path} uses {', '.join(used)}, which is not supported: merge the adapter with peft "
            "(merge_and_unload) and load the merged checkpoint"
        )


def _require_pairs(tensors: Mapping[str, Tensor], rank: int, file: Path) -> None:
    for name, tensor in tensors.items():
        other = name.replace(".lora_A.", ".lora_B.")
        if ".lora_A." in name and other in tensors:
            if tensor.shape[0] == tensors[other].shape[1] == rank:
                continue
            raise UserError(
                f"{file}: {name} has shape {tuple(tensor.shape)} and its partner {tuple(tensors[other].shape)}, "
                f"expected rank {rank}"
            )
        if ".lora_B." in name and name.replace(".lora_B.", ".lora_A.") in tensors:
            continue
        raise UserError(f"{file} holds {name}, expected pairs of lora_A and lora_B weights alone")
    if not tensors:
        raise UserError(f"{file} holds no adapters")


def strip_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as in the model; peft puts `base_model.model.` before them."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def write_adapter(folder: Path, config: LoraConfig, state: Mapping[str, Tensor], base: str) -> None:
    """Write adapters (`<layer>.lora_A.weight`, `<layer>.lora_B.weight`) so that peft and `read_adapter` load them."""
    layers = sorted(name.removesuffix(".lora_A.weight") for name in state if ".lora_A." in name)
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base or None,
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
