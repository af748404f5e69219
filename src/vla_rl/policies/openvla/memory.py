"""How much memory a model takes to play and to train.

    weights       every weight in the model's precision (2 bytes in bfloat16, 4 in float32)
    trained       24 more bytes for every trained weight: its float32 self, two gradients while micro-batches add up,
                  Adam's two moments and the temporary of its step
    activations   what one sample's forward pass leaves for the backward pass, layer by layer
    caches        keys and values of the observations that are decoded at once

Per token a language layer keeps 8 vectors of the hidden width D (residual, norm, q, k, v, mixed, residual, norm)
and 4 of the MLP's width M (gate, its SiLU, up, product), the last layer 4 of D alone; with activation checkpointing
one of width D, and those of a single layer while it is computed again. Frozen vision towers keep nothing. The count
is tested against what autograd really keeps; the shares for workspace and fragmentation are assumptions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from vla_rl.config import OPENVLA_7B, LoraConfig, ModelConfig, VisionTowerConfig
from vla_rl.policies.memory import GB, MemoryBudget
from vla_rl.policies.openvla.lora import adapted_layers
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla.sharding import units_of
from vla_rl.policies.shapes import shapes_alone

TRAINED_BYTES = 24
CONTEXT = 1e9
"""CUDA's context, library workspaces and small things."""
PROMPT_TOKENS = 40
"""A long LIBERO instruction in OpenVLA's prompt."""


@lru_cache(maxsize=8)
def count_weights(model: ModelConfig, lora: LoraConfig | None = None) -> tuple[int, int]:
    """All weights of the model, and those that are trained."""
    with shapes_alone():
        network = OpenVLA(model)
    total = sum(parameter.numel() for parameter in network.parameters())
    if lora is None:
        return total, total
    sizes = [network.get_submodule(name).weight.shape for name in adapted_layers(network, lora)]
    return total, sum(lora.rank * sum(shape) for shape in sizes)  # type: ignore[arg-type]


def columns_of(model: ModelConfig, action_tokens: int) -> int:
    """Length of the language model's sequence: patches, a long prompt, action tokens."""
    patches = (model.image_size // model.dino.patch_size) ** 2
    return patches + PROMPT_TOKENS + action_tokens - 1


def activation_elements(
    model: ModelConfig, columns: int, checkpointing: bool, vision: bool
) -> float:
    """Numbers that one sample's forward pass leaves for the backward pass.

    vision: gradients reach the vision towers (they, or adapters on them, are trained).
    """
    language = model.language
    layer = columns * (8 * language.hidden + 4 * language.mlp_width)
    # the last layer computes queries and MLP for the few columns that are asked for
    last = columns * 4 * language.hidden
    elements = (language.layers - 1) * layer + last
    if checkpointing:
        elements = language.layers * columns * language.hidden + layer
    if not vision:
        return float(elements)
    patches = (model.image_size // model.dino.patch_size) ** 2
    width = model.dino.width + model.siglip.width
    elements += patches * (9 * width + 2 * language.hidden)
    for tower in (model.dino, model.siglip):
        block = _block_elements(tower, patches)
        tokens = patches + int(tower.class_token) + tower.register_tokens
        blocks = tower.depth - 1
        elements += blocks * tokens * tower.width + block if checkpointing else blocks * block
    return float(elements)


def _block_elements(tower: VisionTowerConfig, patches: int) -> int:
    tokens = patches + int(tower.class_token) + tower.register_tokens
    return tokens * ((8 + 2 * tower.layer_scale) * tower.width + 2 * tower.mlp_width)


def cache_bytes(model: ModelConfig, action_tokens: int, itemsize: int) -> float:
    """The key-value cache of one observation."""
    language = model.language
    return 2.0 * language.layers * language.hidden * columns_of(model, action_tokens) * itemsize


def inference_budget(
    model: ModelConfig, dtype: torch.dtype = torch.bfloat16, action_tokens: int = 7
) -> MemoryBudget:
    """Memory of `act`: weights, and per observation the cache and one layer's activations."""
    total, _ = count_weights(model)
    layer = columns_of(model, action_tokens) * (
        6 * model.language.hidden + 3 * model.language.mlp_width
    )
    per_sample = cache_bytes(model, action_tokens, dtype.itemsize) + layer * dtype.itemsize
    return MemoryBudget(float(total * dtype.itemsize), 0.0, 0.0, per_sample, CONTEXT)


def training_budget(
    model: ModelConfig,
    lora: LoraConfig | None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    checkpointing: bool = False,
    rollout_batch: int = 0,
    action_tokens: int = 7,
) -> MemoryBudget:
    """Memory of a learner's step; without adapters all weights are float32.

    rollout_batch: observations decoded at once, whose caches stay allocated between rollouts.
    """
    total, trained = count_weights(model, lora)
    itemsize = dtype.itemsize if lora is not None else torch.float32.itemsize
    weights = 0.0 if lora is None else float(total * itemsize)  # else counted among the trained
    columns = columns_of(model, action_tokens)
    vision = lora is None or lora.vision
    kept = activation_elements(model, columns, checkpointing, vision)
    # the backward pass of an MLP holds three gradients of its width and a few of the hidden one
    passing = columns * (3 * model.language.mlp_width + 4 * model.language.hidden)
    return MemoryBudget(
        weights,
        float(trained * TRAINED_BYTES),
        rollout_batch * cache_bytes(model, action_tokens, itemsize),
        (kept + passing) * itemsize,
        CONTEXT,
    )


@lru_cache(maxsize=8)
def units(model: ModelConfig) -> tuple[int, int]:
    """Weights that sharding puts together at a time: the root's (embedding, head, projector), the largest layer's."""
    with shapes_alone():
        network = OpenVLA(model)
    sizes = [sum(p.numel() for p in unit.parameters()) for unit in units_of(network)]
    return count_weights(model)[0] - sum(sizes), max(sizes)


def sharded_budget(
    model: ModelConfig,
    lora: LoraConfig | None,
    ranks: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    checkpointing: bool = True,
    rollout_batch: int = 0,
    action_tokens: int = 7,
) -> MemoryBudget:
    """Memory of a learner's step on one of several ranks (`parallel.shard fsdp2`), computing in `dtype`.

    Beside its part of everything a rank holds the weights of the root, of the layer that computes and of the next one.
    Where all weights are trained, gradients of root and layer are whole until they are summed, in float32.
    """
    whole = training_budget(
        model,
        lora,
        dtype,
        checkpointing=checkpointing,
        rollout_batch=rollout_batch,
        action_tokens=action_tokens,
    )
    root, layer = units(model)
    at_once = (root + 2 * layer) * dtype.itemsize
    if lora is None:
        at_once += (root + layer) * (dtype.itemsize + torch.float32.itemsize)
    scale = 1.0 if lora is not None else dtype.itemsize / torch.float32.itemsize
    return replace(
        whole,
        weights=whole.weights / ranks,
        trained=whole.trained / ranks,
        caches=whole.caches * scale,
        per_sample=whole.per_sample * scale,
        once=whole.once + at_once,
    )


def window_bytes(
    model: ModelConfig, lora: LoraConfig | None, ranks: int, dtype: torch.dtype, rollout_batch: int
) -> float:
    """Memory of a rank while it plays with all weights put together (`parallel.gather window`)."""
    held = sharded_budget(model, lora, ranks, dtype)
    play = inference_budget(model, dtype)
    return held.weights + held.trained + play.total(rollout_batch)


def policy_budget(policy: OpenVLAPolicy, rollout_batch: int) -> MemoryBudget:
    """`training_budget` of a policy as it is configured, and what of it the policy holds."""
    description, sharding = policy.description, policy.sharding
    if sharding is not None:
        budget = sharded_budget(
            description.model,
            description.lora,
            sharding.world.size,
            sharding.compute,
            checkpointing=policy.config.activation_checkpointing,
            rollout_batch=rollout_batch,
            action_tokens=policy.num_tokens,
        )
        mine = 4.0 * count_weights(description.model)[0] / sharding.world.size
        return replace(budget, present=budget.weights if description.lora is not None else mine)
    budget = training_budget(
        description.model,
        description.lora,
        policy.model.dtype,
        checkpointing=policy.config.activation_checkpointing,
        rollout_batch=rollout_batch,
        action_tokens=policy.num_tokens,
    )
    whole = 4.0 * count_weights(description.model)[0]
    return replace(budget, present=budget.weights if description.lora is not None else whole)


def memory_table(model: ModelConfig = OPENVLA_7B, rank: int = 32) -> str:
    """What fits on GPUs of 24, 40, 80 and 141 GB, as a Markdown table."""
    sizes = (24, 40, 80, 141)
    lora = LoraConfig(rank=rank)
    rows: list[tuple[str, MemoryBudget]] = [
        ("inference, bfloat16: observations at once", inference_budget(model))
    ]
    for checkpointing in (False, True):
        for batch in (10, 64):
            budget = training_budget(model, lora, checkpointing=checkpointing, rollout_batch=batch)
            how = "with" if checkpointing else "without"
            rows.append(
                (f"LoRA {rank}, {how} checkpointing, {batch} environments: micro-batch", budget)
            )
    full = training_budget(model, None, checkpointing=True)
    rows.append(("all weights, float32, with checkpointing: micro-batch", full))
    for ranks in (2, 8):
        held = sharded_budget(model, lora, ranks, rollout_batch=10)
        rows.append((f"LoRA {rank}, sharded over {ranks}, 10 environments each: micro-batch", held))
    for ranks in (4, 8, 16):
        held = sharded_budget(model, None, ranks, rollout_batch=10)
        rows.append((f"all weights, sharded over {ranks}, 10 environments each: micro-batch", held))
    lines = [
        "| | held | per sample | " + " | ".join(f"{size} GB" for size in sizes) + " |",
        "|---|---:|---:|" + "---:|" * len(sizes),
    ]
    for name, budget in rows:
        fits = [str(budget.most_samples(size * GB) or "no") for size in sizes]
        lines.append(
            f"| {name} | {budget.total(0) / GB:.1f} GB | {budget.per_sample / GB:.2f} GB | {' | '.join(fits)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(memory_table())
