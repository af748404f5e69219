"""What the recipes need of policies on models of Hugging Face beside the policy itself, see `family.PolicyFamily`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vla_rl.config.errors import UserError
from vla_rl.policies.family import Finding
from vla_rl.policies.huggingface import backbone
from vla_rl.policies.huggingface.loading import Source, find_source
from vla_rl.policies.huggingface.policy import BLANK_SIDE, HuggingFacePolicy, blank
from vla_rl.policies.memory import MemoryBudget
from vla_rl.policies.safetensors_files import model_entries
from vla_rl.runtime.extras import installed

TRAINED_BYTES = 24
"""Of a trained weight: itself, two gradients while micro-batches add up, Adam's two moments, its step's temporary."""
CONTEXT = 1e9
VECTORS, INNER = 8, 4
"""Vectors of the hidden width and of the MLP's that a layer keeps of a token for the backward pass."""
WORDS = 40
"""A long instruction."""


def speaks_for(kind: str) -> bool:
    """Whether `kind` is a `model_type` of transformers' image-text models."""
    if not installed("transformers"):
        return False
    from transformers.models.auto import modeling_auto

    return kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def refuse_to_create(*args: Any, **kwargs: Any) -> Any:
    """There is no such model from scratch."""
    raise UserError(
        "a policy on a model of Hugging Face starts from a pretrained one: give its folder or hub id with "
        "policy.checkpoint"
    )


def policy_budget(policy: HuggingFacePolicy, rollout_batch: int) -> MemoryBudget:
    """An estimate from the language model's sizes; the vision tower counts as if it were a part of it.

    It is not measured. Where it is wrong, set micro_batch.
    """
    text = policy.model.config.get_text_config()
    parameters = list(policy.model.parameters())
    size = parameters[0].element_size()
    present = float(sum(p.numel() * p.element_size() for p in parameters))
    trained = sum(p.numel() for p in policy.policy_parameters())
    columns = _columns(policy)
    width, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    caches = rollout_batch * columns * layers * 2 * heads * head * size
    sample = columns * layers * (VECTORS * width + INNER * inner) * size
    return MemoryBudget(present, TRAINED_BYTES * trained, caches, sample, CONTEXT, present)


def _columns(policy: HuggingFacePolicy) -> int:
    """Tokens of a prompt with one image, and its answer."""
    inputs = policy.conversation.inputs(blank(policy.image_size or BLANK_SIDE), policy.device)
    return inputs["input_ids"].shape[1] + WORDS + policy.num_tokens


def examine(reference: str) -> list[Finding]:
    """Look at a model or policy without reading its weights."""
    try:
        source = find_source(reference)
    except UserError as error:
        return [Finding("checkpoint", "fail", str(error))]
    looks = {
        "model": _look_at_model,
        "weights": _look_at_weights,
        "processor": _look_at_processor,
        "actions": _look_at_actions,
    }
    return [_guarded(name, look, source) for name, look in looks.items()]


def _guarded(name: str, look: Callable[[Source], Finding], source: Source) -> Finding:
    try:
        return look(source)
    except UserError as error:
        return Finding(name, "fail", str(error))


def _look_at_model(source: Source) -> Finding:
    config = backbone.load_config(str(source.base_folder))
    adapters = f", with adapters in {source.folder}" if source.adapted else ""
    return Finding("model", "ok", f"{config.model_type} of transformers{adapters}")


def _look_at_weights(source: Source) -> Finding:
    entries = model_entries(source.base_folder)
    total = sum(entry.bytes // entry.dtype.itemsize for entry in entries.values())
    return Finding("weights", "ok", f"{len(entries)} tensors, {total / 1e6:.1f} million weights")


def _look_at_processor(source: Source) -> Finding:
    config = backbone.load_config(str(source.base_folder))
    processor = backbone.load_processor(
        str(source.base_folder), config, template="paligemma" not in config.model_type
    )
    return Finding(
        "processor", "ok", f"{type(processor).__name__}, {len(processor.tokenizer)} tokens"
    )


def _look_at_actions(source: Source) -> Finding:
    section = source.section
    if section is None:
        return Finding(
            "actions", "warn", "a model that has not learned to act",
            f"vla-rl sft --dataset ... --policy.checkpoint {source.reference}",
        )  # fmt: skip
    return Finding(
        "actions", "ok",
        f"{section.action_chunk} x {section.action_dim} of {len(section.action_ids)} bins a turn",
    )  # fmt: skip
