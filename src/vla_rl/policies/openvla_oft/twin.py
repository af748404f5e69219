"""The same weights read as the other class: what tells a checkpoint that does not say its class."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla_oft.model import LEAST_LAYERS
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy


def other_class(policy: OpenVLAPolicy) -> OpenVLAPolicy | None:
    """The weights of a plain policy as OpenVLA-OFT, or the reverse; no weight is copied.

    None where the weights cannot be of another class. A checkpoint that does not say how many actions a turn has plays
    as many as the published ones of the class. Its critic is a fresh one.
    """
    cls = OpenVLAPolicy if isinstance(policy, OpenVLAOFTPolicy) else OpenVLAOFTPolicy
    description = policy.description
    if cls is OpenVLAOFTPolicy and description.model.language.layers < LEAST_LAYERS:
        return None
    if description.fast is not None:  # whose tokens follow from each other
        return None
    tensors = [*policy.model.parameters(), *policy.model.buffers()]
    model = copy.deepcopy(policy.model, {id(tensor): tensor for tensor in tensors})
    model.__class__ = cls.network  # both hold the same modules, and nothing else
    description = replace(
        description,
        kind=cls.network.kind,
        action_chunk=description.action_chunk if description.own else cls.network.published_chunk,
    )
    with torch.random.fork_rng(devices=[]):  # of the critic's weights nobody asks
        return cls(model, policy.processor.tokenizer, description, policy.config, policy.device)
