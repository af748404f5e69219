"""Policies to disk: whole checkpoints, merged ones for other software, adapters alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla_rl.config.errors import UserError
from vla_rl.config.policy import LoraConfig
from vla_rl.config.serialize import to_json
from vla_rl.distributed.sharding import Sharding
from vla_rl.policies.action_tokens import select_statistics
from vla_rl.policies.fingerprint import fingerprint
from vla_rl.policies.openvla import checkpoint as files
from vla_rl.policies.openvla import lora
from vla_rl.policies.openvla.config_files import (
    Checkpoint,
    write_adapter_section,
    write_checkpoint_config,
)
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.openvla.processing import Processor
from vla_rl.policies.peft_files import merged_weight, write_adapter
from vla_rl.policies.safetensors_files import SHARD_BYTES, Stored, save_sharded, save_tensors


@runtime_checkable
class Savable(Protocol):
    """What of a policy is written."""

    model: OpenVLA
    description: Checkpoint
    processor: Processor
    stored_dtypes: dict[str, torch.dtype]
    sharding: Sharding | None

    @property
    def critic(self) -> nn.Module: ...


def save_policy(policy: Savable, folder: Path, limit: int = SHARD_BYTES) -> None:
    """Write a checkpoint that `OpenVLAPolicy.from_checkpoint` loads to the same bits.

    Adapters go without their base if that lies in a folder or on the hub. Weights that were not trained have the
    bytes they were read from. Weights that are divided among ranks are written whole, by rank 0 inside `lending`.
    """
    whole = Tensor.detach if policy.sharding is None else policy.sharding.whole
    _write_description(folder, policy.description, policy.processor.tokenizer)
    settings = policy.description.lora
    if settings is not None:
        state = {name: whole(t) for name, t in lora.adapter_state(policy.model).items()}
        write_adapter(folder, settings, state, policy.description.base or "")
    if policy.description.base is None:
        files.save_model(lora.base_state(policy.model), folder, policy.stored_dtypes, limit, whole)
    if values := policy.critic.state_dict():
        save_tensors(values, folder / files.CRITIC_FILE)


def export_merged(
    policy: Savable, folder: Path, dtype: torch.dtype | None = None, limit: int = SHARD_BYTES
) -> None:
    """Write the model as one checkpoint in the official format, adapters merged into the weights, without critic.

    Merging is done in float32 and rounded once, to `dtype` or, without one, to the precision each weight was stored
    in (float32 if it was not loaded from anywhere). Rounding to bfloat16 can take away much of a small update:
    float32 keeps it. A model that writes FAST tokens calls itself another type, so that software that would read them
    as bins refuses it.
    """
    description = replace(policy.description, lora=None, base=None, base_digest=None, critic=None)
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        description = replace(description, extra={**description.extra, "torch_dtype": name})
    _write_description(folder, description, policy.processor.tokenizer)
    merged = MergedWeights(policy)
    plan = {
        name: Stored(dtype or policy.stored_dtypes.get(name, tensor.dtype), tuple(tensor.shape))
        for name, tensor in merged.base.items()
    }
    save_sharded(plan, merged.tensor, folder, limit)


class MergedWeights:
    """The model's weights under their official names, each merged with its adapter when it is asked for."""

    def __init__(self, policy: Savable) -> None:
        self.base = lora.base_state(policy.model)
        self._adapters = lora.adapter_state(policy.model)
        self._settings = policy.description.lora
        trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
        self.learned = [
            name
            for name in self.base
            if (name in trained if self._settings is None else self._pair(name) is not None)
        ]
        """Names of those that training changes."""

    def tensor(self, name: str) -> Tensor:
        """In float32 if it has an adapter, else as it is."""
        weight, pair = self.base[name].detach(), self._pair(name)
        if self._settings is None or pair is None:
            return weight
        return merged_weight(weight, *pair, self._settings.alpha / self._settings.rank)

    def _pair(self, name: str) -> tuple[Tensor, Tensor] | None:
        layer = name.removesuffix(".weight")
        down = self._adapters.get(f"{layer}.lora_A.weight")
        return None if down is None else (down, self._adapters[f"{layer}.lora_B.weight"])


def export_adapter(policy: Savable, folder: Path) -> None:
    """Write the adapters alone, in PEFT's format, with the statistics and the tokenizer that belong to them.

    How images, gripper and actions are meant goes into vla_rl.json, so that they are played as they were trained.
    Raises UserError if the policy has no adapters.
    """
    settings = _adapters_of(policy.description)
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter(folder, settings, lora.adapter_state(policy.model), policy.description.base or "")
    write_adapter_section(folder, policy.description)
    policy.processor.tokenizer.save(str(folder / files.TOKENIZER_FILE))


def fingerprint_of(policy: Savable) -> str:
    """The policy's content: weights, sizes, image preprocessing, action statistics and tokenizer."""
    description = policy.description
    _, statistics = select_statistics(description.norm_stats, description.unnorm_key)
    facts = {
        "model": to_json(description.model),
        "action": [description.action_dim, description.action_chunk],
        "statistics": [statistics.q01.tolist(), statistics.q99.tolist(), statistics.mask.tolist()],
    }
    if description.unnorm_keys:
        each = [
            select_statistics(description.norm_stats, key)[1] for key in description.unnorm_keys
        ]
        facts["suites"] = [[s.q01.tolist(), s.q99.tolist(), s.mask.tolist()] for s in each]
    if description.fast is not None:
        fast = description.fast
        codes = fast.tokenizer.codes.to_str()
        facts["fast"] = [codes, fast.tokenizer.scale, fast.tokenizer.min_token, fast.most]
    if description.kind != "openvla":  # which digests of earlier versions do not say
        facts["kind"] = description.kind
    text = json.dumps(facts, sort_keys=True)
    return fingerprint(policy.model, text, policy.processor.tokenizer.to_str())


def _adapters_of(description: Checkpoint) -> LoraConfig:
    if description.lora is None:
        raise UserError(
            "this policy has no adapters, all its weights were trained: export it as a whole (--merged)"
        )
    return description.lora


def _write_description(folder: Path, description: Checkpoint, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint_config(folder, description)
    tokenizer.save(str(folder / files.TOKENIZER_FILE))
