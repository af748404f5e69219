"""Policies on models of Hugging Face to disk, in the format of their models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vla_rl.config.errors import UserError
from vla_rl.policies.action_tokens import select_statistics
from vla_rl.policies.fingerprint import fingerprint
from vla_rl.policies.huggingface.backbone import quiet
from vla_rl.policies.huggingface.conversation import Conversation
from vla_rl.policies.huggingface.description import CRITIC_FILE, Description, write_description
from vla_rl.policies.openvla.lora import adapter_state, base_state
from vla_rl.policies.peft_files import merged_weight, write_adapter
from vla_rl.policies.safetensors_files import save_tensors


@runtime_checkable
class Savable(Protocol):
    """What of a policy is written."""

    model: Any
    description: Any
    conversation: Conversation
    tokens_added: bool

    @property
    def critic(self) -> nn.Module: ...


def save_policy(policy: Savable, folder: Path) -> None:
    """Write a checkpoint that `HuggingFacePolicy.from_checkpoint` loads to the same bits.

    Without adapters it is a folder of the model's own format, which transformers loads. Adapters go without their base,
    in PEFT's format.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described: Description = policy.description
    if described.lora is None:
        with quiet():
            policy.model.save_pretrained(str(folder))
    else:
        write_adapter(folder, described.lora, adapter_state(policy.model), described.base or "")
    _write_beside(policy, described, folder)
    if values := policy.critic.state_dict():
        save_tensors(values, folder / CRITIC_FILE)


def export_merged(
    policy: Savable, folder: Path, dtype: torch.dtype | None, shard_bytes: int
) -> None:
    """Write the model as one checkpoint in its own format, adapters merged into the weights, without critic.

    Merging is done in float32 and rounded once, to `dtype` or to the precision that the model has.
    """
    if not policy.description.norm_stats:
        raise UserError("this model has not learned to act: there is nothing to export")
    folder.mkdir(parents=True, exist_ok=True)
    described = replace(policy.description, lora=None, base=None, base_digest=None, critic=None)
    adapters, settings = adapter_state(policy.model), policy.description.lora
    state: dict[str, Tensor] = {}
    for name, weight in base_state(policy.model).items():
        down = adapters.get(f"{name.removesuffix('.weight')}.lora_A.weight")
        if settings is not None and down is not None:
            up = adapters[f"{name.removesuffix('.weight')}.lora_B.weight"]
            merged = merged_weight(weight, down, up, settings.alpha / settings.rank)
            state[name] = merged.to(dtype or weight.dtype)
        else:
            state[name] = weight.detach().to(dtype) if dtype is not None else weight.detach()
    with quiet():
        policy.model.save_pretrained(str(folder), state_dict=state, max_shard_size=shard_bytes)
    if dtype is not None:
        path = folder / "config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["dtype"] = str(dtype).removeprefix("torch.")
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _write_beside(policy, described, folder)


def export_adapter(policy: Savable, folder: Path) -> None:
    """Write the adapters alone, in PEFT's format, with what says how the model is asked and what its tokens mean.

    Raises UserError if the policy has no adapters.
    """
    described: Description = policy.description
    if described.lora is None:
        raise UserError(
            "this policy has no adapters, all its weights were trained: export it as a whole (--merged)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter(folder, described.lora, adapter_state(policy.model), described.base or "")
    _write_beside(policy, replace(described, critic=None), folder)


def _write_beside(policy: Savable, described: Description, folder: Path) -> None:
    write_description(folder, described)
    if policy.tokens_added:
        policy.conversation.tokenizer.save_pretrained(str(folder))


def fingerprint_of(policy: Savable) -> str:
    """The policy's content: weights, what it is asked and by which processor, and what its tokens mean."""
    described: Description = policy.description
    facts: dict[str, Any] = {
        "action": [described.action_dim, described.action_chunk, described.gripper],
        "ids": described.action_ids,
        "prompt": described.prompt,
        "statistics": [
            [s.q01.tolist(), s.q99.tolist(), s.mask.tolist()]
            for s in (
                select_statistics(described.norm_stats, key)[1]
                for key in described.unnorm_keys or (described.unnorm_key,)
            )
        ],
    }
    # token files are rewritten by the library; what they say stays
    own = {name: data.hex() for name, data in described.files.items() if "processor" in name}
    words = json.loads(policy.conversation.tokenizer.backend_tokenizer.to_str())
    for passing in ("padding", "truncation"):  # of the last call
        words.pop(passing, None)
    template = policy.conversation.template or ""
    return fingerprint(
        policy.model, json.dumps(facts), json.dumps(own), template, json.dumps(words)
    )
