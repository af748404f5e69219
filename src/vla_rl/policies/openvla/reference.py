"""The frozen initial policy, which the KL term refers to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vla_rl.config.policy import PolicyConfig
from vla_rl.distributed.sharding import Sharding
from vla_rl.policies.openvla import lora
from vla_rl.policies.openvla.loading import find_source, load_network, own_adapters
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.openvla.sharding import ReferenceAdapters, split


class Reference:
    """A model of its own. With adapters it shares the base and has adapters of its own.

    Of a model whose weights are divided among ranks it is the model itself, with other adapters for a pass.
    """

    def __init__(self, model: OpenVLA, adapted: bool, folder: Path | str | None, config: PolicyConfig,
                 device: torch.device) -> None:  # fmt: skip
        """folder: of the checkpoint whose weights it has; None: the present ones."""
        source = None if folder is None else find_source(folder, config.base, kind=config.kind)
        self._adapters: ReferenceAdapters | None = None
        self.model: OpenVLA | None
        if adapted:
            adapters = lora.adapter_state(model) if source is None else own_adapters(source)
            self.model = lora.frozen_twin(model, adapters)
            return
        if source is None:
            reference = copy.deepcopy(model)
        else:
            reference = load_network(source, config, device, model.dtype, type(model)).model
        self.model = reference.requires_grad_(False).eval()

    @contextmanager
    def weights(self, trained: OpenVLA) -> Iterator[OpenVLA]:
        """The model that is the reference inside."""
        if self._adapters is None:
            assert self.model is not None
            yield self.model
        else:
            with self._adapters.in_place():
                yield trained

    @contextmanager
    def split_with(self, trained: OpenVLA, sharding: Sharding) -> Iterator[None]:
        """Inside, `trained` is divided among the ranks; afterwards so is the reference."""
        assert self.model is not None
        adapters = None
        if lora.adapter_parameters(trained):
            adapters = lora.adapter_state(self.model)
            self.model = None  # it holds on to the base, which is divided now
        yield
        if adapters is not None:
            self._adapters = ReferenceAdapters(trained, adapters)
        elif self.model is not None:
            split(self.model, sharding)
