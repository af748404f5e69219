"""Low-rank adapters through peft, with float32 weights on a frozen base of any precision."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vla_rl.config.policy import LoraConfig
from vla_rl.policies import kernels
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.runtime.extras import need

ADAPTER = "default"
M = TypeVar("M", bound=nn.Module)


def _peft() -> Any:
    need("peft", purpose="LoRA")
    import peft

    return peft


def adapted_layers(model: OpenVLA, config: LoraConfig) -> list[str]:
    """Names of the linear layers that get an adapter: the language model's, and the towers' if configured.

    Never the output head (a slice of its rows is used), nor layers that take no part in the forward pass.
    """
    roots = ["language_model.model.", *(["vision_backbone."] if config.vision else [])]
    unused = set()
    for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
        unused |= {id(parameter) for parameter in tower.unused_parameters()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(tuple(roots))
        and id(module.weight) not in unused
    ]


def adapter_shapes(model: OpenVLA, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the adapters' weights as they are stored, for a model that has none yet."""
    shapes = {}
    for name in adapted_layers(model, config):
        outputs, inputs = model.get_submodule(name).weight.shape  # type: ignore[misc]
        shapes[f"{name}.lora_A.weight"] = (config.rank, inputs)
        shapes[f"{name}.lora_B.weight"] = (outputs, config.rank)
    return shapes


def add_adapters(model: OpenVLA, config: LoraConfig) -> None:
    """Freeze the model and put adapters on it, in place. B starts at zero: outputs are those of the base."""
    peft = _peft()
    model.requires_grad_(False)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=adapted_layers(model, config),
        bias="none",
    )
    peft.inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    for module in model.modules():
        if type(module) is peft.tuners.lora.Linear:
            module.__class__ = _mixed_precision_linear()
    for name, parameter in model.named_parameters():
        if _is_adapter(name):
            # in bfloat16 steps of 1e-6 would be rounded away
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)


@functools.cache
def _mixed_precision_linear() -> type[nn.Module]:
    """An adapted linear layer of peft, with the adapter's products in the base's precision on a GPU.

    peft computes them in the adapter's float32 and converts input and output of every layer on the way. For a
    7B model in bfloat16 that moves about 13 GB per sample and forward pass, as much time as all matrix products
    take on an H200 (estimated from sizes, not measured), and keeps float32 copies of the inputs for the backward
    pass. The weights stay float32; CPUs, float32 bases and merged or switched-off adapters go peft's way.
    """
    from peft.tuners.lora import Linear as PeftLinear

    class MixedPrecisionLinear(PeftLinear):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            mixed = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)
            if not mixed or self.disable_adapters or self.merged or args or kwargs:
                return super().forward(x, *args, **kwargs)
            return self.adapt(x)

        def adapt(self, x: Tensor) -> Tensor:
            down, up = self.lora_A[ADAPTER], self.lora_B[ADAPTER]
            assert isinstance(down, nn.Linear)
            assert isinstance(up, nn.Linear)
            dropped = self.lora_dropout[ADAPTER](x)
            scale = self.scaling[ADAPTER]
            return kernels.add_low_rank(self.base_layer(x), dropped, down.weight, up.weight, scale)

    return MixedPrecisionLinear


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters, by the names of `adapter_state`."""
    return {
        name.replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in model.named_parameters()
        if _is_adapter(name)
    }


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights, named as in the model without the adapter's name."""
    return {
        name.replace(f".{ADAPTER}.", "."): value
        for name, value in model.state_dict().items()
        if _is_adapter(name)
    }


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The base's weights under their official names."""
    return {
        name.replace(".base_layer.", "."): value
        for name, value in model.state_dict().items()
        if not _is_adapter(name)
    }


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `adapter_state` gave; names and shapes must have been checked."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _is_adapter(name):
                parameter.copy_(state[name.replace(f".{ADAPTER}.", ".")])


def frozen_twin(model: M, adapters: Mapping[str, Tensor] | None) -> M:
    """The model with frozen adapters of its own; all other weights are shared with `model`, not copied.

    adapters: As `adapter_state` gives them; None for fresh ones, with which the model is its base.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    twin = copy.deepcopy(
        model, {id(tensor): tensor for name, tensor in tensors if not _is_adapter(name)}
    )
    if adapters is not None:
        load_adapter_state(twin, adapters)
    for name, parameter in twin.named_parameters():
        if _is_adapter(name):
            parameter.requires_grad_(False)
            if adapters is None and ".lora_B." in name:
                parameter.data.zero_()
    return twin.eval()


def same_shape(asked: LoraConfig, stored: LoraConfig) -> bool:
    """Whether adapters stored with one configuration can be used under another (dropout may differ)."""
    return replace(asked, dropout=0.0) == replace(stored, dropout=0.0)
