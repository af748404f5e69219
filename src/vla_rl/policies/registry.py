"""The classes of policies, by what their checkpoints call themselves, or `policy.kind` in their place.

A checkpoint says it in our own files, or as `model_type` in config.json. A new one is a folder beside `openvla/` and a
line here; or, in a package of yours, an entry point of the group `vla_rl.policies` with that name, which is loaded when
a checkpoint calls itself so. Every other image-text model that transformers knows is of one class.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from vla_rl.config import (
    SCRATCH_MODELS,
    ConfigError,
    Conventions,
    GRPOConfig,
    ModelConfig,
    PolicyConfig,
    PPOConfig,
    TPOConfig,
    UserError,
    nearest,
)
from vla_rl.distributed.world import SingleProcess, World
from vla_rl.policies.family import ImageFit, PolicyFamily
from vla_rl.policies.fast.actions import FastTokens
from vla_rl.policies.huggingface.description import FAMILY
from vla_rl.policies.huggingface.family import (
    examine as examine_huggingface,
)
from vla_rl.policies.huggingface.family import (
    policy_budget as huggingface_budget,
)
from vla_rl.policies.huggingface.family import (
    refuse_to_create,
    speaks_for,
)
from vla_rl.policies.huggingface.policy import HuggingFacePolicy
from vla_rl.policies.memory import largest_micro_batch
from vla_rl.policies.openvla.config_files import with_action_bins
from vla_rl.policies.openvla.examining import examine as examine_openvla
from vla_rl.policies.openvla.memory import policy_budget
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla.processing import with_image_fit
from vla_rl.policies.openvla_oft.memory import policy_budget as oft_budget
from vla_rl.policies.openvla_oft.model import LEAST_LAYERS
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.policy import Policy
from vla_rl.runtime.bases import checkpoint_kind
from vla_rl.runtime.entry_points import add_entry_points
from vla_rl.runtime.external import shown
from vla_rl.runtime.extras import install, installed

Settings = TypeVar("Settings", PPOConfig, GRPOConfig, TPOConfig)

LOG = logging.getLogger(__name__)

SCRATCH = "openvla"
"""The family of a policy that is made from scratch, if `policy.kind` does not say another."""


def _from_scratch(
    policy: type[OpenVLAPolicy],
    least_layers: int,
    image_size: int,
    instructions: Sequence[str],
    norm_stats: Mapping[str, Any],
    action_dim: int,
    action_chunk: int,
    config: PolicyConfig,
    seed: int,
    image_fit: ImageFit | None = None,
    fast: FastTokens | None = None,
) -> OpenVLAPolicy:
    model = with_image_fit(SCRATCH_MODELS[config.scratch or "tiny"](image_size), image_fit)
    layers = max(model.language.layers, least_layers)
    model = replace(model, language=replace(model.language, layers=layers))
    statistics = dict(norm_stats)
    if fast is not None:
        model = _with_room(model, fast)
    return policy.create(
        model, instructions, statistics, action_dim, action_chunk, config, seed, fast
    )


def _with_room(model: ModelConfig, fast: FastTokens) -> ModelConfig:
    """The model with a vocabulary of as many words as before, and of these action tokens."""
    language = model.language
    text = language.text_vocab - model.action_bins + fast.end + 1
    padded = text + language.padded_vocab - language.text_vocab
    wider = replace(language, text_vocab=text, padded_vocab=padded, pad_token=text)
    return with_action_bins(replace(model, language=wider), fast)


POLICIES: dict[str, PolicyFamily] = {
    "openvla": PolicyFamily(
        load=OpenVLAPolicy.from_checkpoint,
        create=partial(_from_scratch, OpenVLAPolicy, 1),
        memory_budget=policy_budget,
        examine=examine_openvla,
        shardable=True,
        fast=True,
    ),
    "openvla-oft": PolicyFamily(
        load=OpenVLAOFTPolicy.from_checkpoint,
        create=partial(_from_scratch, OpenVLAOFTPolicy, LEAST_LAYERS),
        memory_budget=oft_budget,
        examine=examine_openvla,
        shardable=True,
    ),
    # whatever transformers knows as an image-text model
    FAMILY: PolicyFamily(
        load=HuggingFacePolicy.from_checkpoint,
        create=refuse_to_create,
        memory_budget=huggingface_budget,
        examine=examine_huggingface,
    ),
}
"""Name (`policy.kind`) -> class of policy. A new one is a folder and an entry here."""


ENTRY_POINTS = "vla_rl.policies"
"""The group of entry points in which packages of others name their classes of policies."""


def family(kind: str) -> PolicyFamily | None:
    """The class of policies that is called `kind`, of other packages as well; None if there is none.

    UserError where a package names it and cannot be loaded.
    """
    if kind not in POLICIES:
        broken = add_entry_points(POLICIES, ENTRY_POINTS, PolicyFamily, "a PolicyFamily")
        if kind in broken:
            raise UserError(f"{broken[kind]}. Mend or remove that package")
    return POLICIES.get(kind)


def named_family(kind: str) -> PolicyFamily:
    """The family that `policy.kind` names, by default that of policies from scratch. ConfigError for an unknown one."""
    kind = kind or SCRATCH
    found = family(kind)
    if found is None:
        raise ConfigError(
            f"policy.kind is {shown(kind)}, expected a class of policies.{nearest(kind, POLICIES)}"
        )
    return found


def family_of(reference: str | Path, base: str = "", kind: str = "") -> PolicyFamily:
    """The family of the checkpoint at `reference`, of adapters that of their base; `kind` is the user's own word.

    Raises UserError for a model of a family that is not known. A checkpoint that does not say gets OpenVLA's, whose
    loader says what is wrong with it.
    """
    if kind:
        return named_family(kind)
    kind = checkpoint_kind(reference, base) or SCRATCH
    found = family(kind)
    if found is not None:
        return found
    if speaks_for(kind):
        return POLICIES[FAMILY]
    transformers = "" if installed("transformers") else f" ({install(['transformers'])})"
    raise UserError(
        f"{reference} is a model of type {shown(kind)}, expected a policy of a known type, or an image-text model that "
        f"transformers knows by itself{transformers}; code of a repository is never run.{nearest(kind, POLICIES)}"
    )


def load_policy(
    reference: str | Path,
    config: PolicyConfig | None = None,
    *,
    unnorm_key: str | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    conventions: Conventions | None = None,
) -> Policy:
    """Load a policy: a folder with a checkpoint, a hub id, or adapters in PEFT's format.

    config: device, adapters, critic and so on; what it leaves open is taken from the checkpoint. unnorm_key and dtype
    take the place of `config`'s. seed: of what the checkpoint does not hold, a critic for example. conventions: a
    benchmark's, for checkpoints that do not say how their images and actions are meant.

    Raises UserError for a model that is not known, and for missing, damaged or ill-fitting files.
    """
    config = config or PolicyConfig()
    return family_of(reference, config.base, config.kind).load(
        reference,
        config,
        unnorm_key=unnorm_key,
        dtype=dtype,
        seed=seed,
        conventions=conventions,
    )


def with_micro_batch(
    settings: Settings,
    policy: Policy,
    rollout_batch: int,
    world: World = SingleProcess(),
    turns: int | None = None,
) -> Settings:
    """The settings with `micro_batch` -1 replaced by the largest power of two that the free memory allows everywhere.

    turns: of a minibatch; None: that is its size. To be called with the weights on the device and before anything else
    is. Raises UserError if not even one sample fits.
    """
    if settings.micro_batch >= 0:
        return settings
    budget = POLICIES[policy.kind].memory_budget(policy, rollout_batch)
    device = policy.policy_parameters()[0].device
    most = turns or settings.minibatch
    chosen = min(world.gather(largest_micro_batch(budget, device, most)))
    LOG.info("micro-batches of %d (of %d)", chosen, most)
    return replace(settings, micro_batch=0 if chosen == most else chosen)
