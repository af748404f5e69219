"""Low-rank adapters on an image-text model of Hugging Face, put in place, as OpenVLA's are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_rl.config.errors import UserError
from vla_rl.config.policy import LoraConfig
from vla_rl.policies.openvla.lora import ADAPTER, adapter_parameters, load_adapter_state
from vla_rl.policies.peft_files import ADAPTER_FILE, strip_prefix
from vla_rl.policies.safetensors_files import read_tensors
from vla_rl.runtime.external import path_inside
from vla_rl.runtime.extras import need


def add_adapters(model: Any, config: LoraConfig) -> None:
    """Freeze the model and put adapters on it, in place. B starts at zero: outputs are those of the base.

    They go on the language model's linear layers and, if configured, on all others but the output head.
    """
    need("peft", purpose="LoRA")
    import peft

    model.requires_grad_(False)
    language = {id(module) for module in model.get_decoder().modules()}
    head = model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and (config.vision or id(module) in language)
    ]
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=names,
        bias="none",
    )
    peft.inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    for parameter in adapter_parameters(model).values():
        # in bfloat16 steps of 1e-6 would be rounded away
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def read_adapters(folder: Path, model: Any) -> dict[str, Tensor]:
    """The adapters in `folder`. Raises UserError where they are missing, damaged or another model's."""
    file = path_inside(folder, ADAPTER_FILE, source=folder)
    if not file.is_file():
        raise UserError(f"{file} is missing: the adapter in {folder} is incomplete")
    found = strip_prefix(read_tensors([file], torch.float32))
    wanted = adapter_parameters(model)
    strange = sorted(set(found) ^ set(wanted))
    if strange:
        raise UserError(
            f"{file} does not fit its base: {strange[0]} is in one of them alone (of {len(strange)}). Was another "
            "model put in the base's place?"
        )
    for name, parameter in wanted.items():
        if found[name].shape != parameter.shape:
            raise UserError(
                f"{file}: {name} has shape {tuple(found[name].shape)}, the base needs {tuple(parameter.shape)}: it "
                "belongs to another model"
            )
    return found


def load_adapters(model: Any, tensors: Mapping[str, Tensor]) -> None:
    load_adapter_state(model, tensors)
