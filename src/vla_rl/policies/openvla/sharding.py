"""OpenVLA with its weights divided among ranks: what is put together at a time, and the reference's adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from vla_rl.distributed.sharding import Sharding, local, part_of
from vla_rl.policies.openvla import lora
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.types import Observation

METHODS = ("prefill", "decode", "first_hidden", "action_logits")
"""What computes with the model's weights beside `forward`."""


def units_of(model: OpenVLA) -> list[nn.Module]:
    """The blocks of both towers and the language model's layers. Embedding, head and projector are the root's."""
    vision = model.vision_backbone
    return [
        *vision.featurizer.blocks, *vision.fused_featurizer.blocks, *model.language_model.model.layers
    ]  # fmt: skip


def split(model: OpenVLA, sharding: Sharding) -> None:
    """Keep this rank's part of the model.

    A frozen base is kept in the precision that computes. What is trained is float32, and computes in that precision
    where there are no adapters.
    """
    adapters = {id(parameter) for parameter in lora.adapter_parameters(model).values()}
    if adapters:
        for parameter in model.parameters():
            if id(parameter) not in adapters:
                parameter.data = parameter.data.to(sharding.compute)
    compute = torch.float32 if adapters else sharding.compute
    sharding.split(model, units_of(model), METHODS, compute)


class ReferenceAdapters:
    """This rank's part of frozen adapters, which take the place of the trained ones for a pass."""

    def __init__(self, model: OpenVLA, adapters: Mapping[str, Tensor]) -> None:
        """adapters: whole, as `lora.adapter_state` gives them. model: split already."""
        own = lora.adapter_parameters(model)
        self._pairs = [
            (parameter, local(part_of(adapters[name], parameter)).clone())
            for name, parameter in own.items()
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model is the reference."""
        trained = [local(parameter).clone() for parameter, _ in self._pairs]
        for parameter, reference in self._pairs:
            local(parameter).copy_(reference)
        try:
            yield
        finally:
            for (parameter, _), own in zip(self._pairs, trained, strict=True):
                local(parameter).copy_(own)


def blank_observation(image_size: int) -> Observation:
    """What a rank looks at that has nothing to ask when the others have."""
    return Observation(
        np.zeros((1, image_size, image_size, 3), np.uint8),
        ("",),
        np.zeros((1, 1), np.float32),
        np.zeros(1, np.float32),
    )
