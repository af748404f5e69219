"""Look at an OpenVLA checkpoint without building a model of it: what is in it, whether it is whole, what it needs.

Every check is the loader's own, so that what passes here loads. All weights are read once, one tensor at a time, since
a NaN among them shows in no header: a 15 GB checkpoint takes as long as the disk needs for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

import psutil
import torch

from vla_rl.config import LoraConfig, ModelConfig, PPOConfig, UserError
from vla_rl.policies.action_tokens import dataset_name
from vla_rl.policies.critic import build_critic
from vla_rl.policies.family import Finding
from vla_rl.policies.memory import GB
from vla_rl.policies.openvla.checkpoint import check_fit, check_weights
from vla_rl.policies.openvla.config_files import Checkpoint
from vla_rl.policies.openvla.loading import (
    LARGE_MODEL,
    Source,
    choose_statistics,
    critic_file,
    find_source,
    open_tokenizer,
    read_own_adapters,
)
from vla_rl.policies.openvla.memory import count_weights, inference_budget, training_budget
from vla_rl.policies.openvla.model import critic_sizes
from vla_rl.policies.safetensors_files import TensorEntry, read_tensors, stream_tensors
from vla_rl.policies.shapes import shapes_alone
from vla_rl.runtime.external import printable

SHOWN_DATASETS = 8


def examine(reference: str) -> list[Finding]:
    """The findings about a folder, an adapter or a hub id, in the order in which one would fix them."""
    try:
        source = find_source(reference)
    except UserError as error:
        return [Finding("checkpoint", "fail", str(error), _remedy(reference))]
    description = source.description
    findings = [Finding("checkpoint", "ok", f"{source.folder}: {_kind(source)}")]
    findings.append(Finding("model", "ok", _sizes(description.model)))
    weights = _guarded("weights", lambda: _check_weights(source))
    findings.append(weights)
    findings.append(_guarded("tokenizer", lambda: _check_tokenizer(source)))
    findings.append(_guarded("statistics", lambda: _check_statistics(description)))
    findings.append(_guarded("adapters", lambda: _check_adapters(source)))
    findings.append(_guarded("critic", lambda: _check_critic(source)))
    if weights.status == "ok":
        findings += _fits(description.model, description.lora, source.weights.entries())
    return findings


def _remedy(reference: str) -> str:
    return f"give a folder with config.json, a run, or a hub id such as openvla/openvla-7b instead of {reference}"


def _guarded(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except UserError as error:
        return Finding(name, "fail", str(error), "copy or download the checkpoint again")


def _kind(source: Source) -> str:
    if source.weights.adapters:
        return f"adapters in PEFT's format on {source.weights.folder}"
    if source.description.lora is not None:
        return f"a checkpoint of vla-rl with adapters on {printable(source.description.base or 'its own base')}"
    ours = source.description.action_chunk > 1 or source.description.critic is not None
    return "a checkpoint of vla-rl" if ours else "a checkpoint in OpenVLA's format"


def _sizes(model: ModelConfig) -> str:
    language = model.language
    towers = " + ".join(f"{t.width} x {t.depth}" for t in (model.dino, model.siglip))
    return (
        f"{model.name}: {model.image_size} px, vision towers {towers} (width x blocks), language model "
        f"{language.hidden} x {language.layers}, {model.action_bins} action values"
    )


def _check_weights(source: Source) -> Finding:
    weights = source.weights
    _, entries = check_weights(weights.folder, source.description.model, weights.adapters)
    for _ in stream_tensors(entries):
        pass  # refuses what is not finite
    kinds = Counter(str(entry.dtype).removeprefix("torch.") for entry in entries.values())
    files = len({entry.file for entry in entries.values()})
    size = sum(entry.bytes for entry in entries.values())
    found = (
        f"{_count(entries) / 1e6:,.1f} M weights, {len(entries)} tensors of {', '.join(kinds)} in {files} file"
        f"{'s' if files > 1 else ''}, {size / GB:.2f} GB; complete"
    )
    return Finding("weights", "ok", found)


def _count(entries: Mapping[str, TensorEntry]) -> int:
    return sum(math.prod(entry.shape) for entry in entries.values())


def _check_tokenizer(source: Source) -> Finding:
    tokenizer = open_tokenizer(source)
    return Finding("tokenizer", "ok", f"{tokenizer.get_vocab_size():,} tokens")


def _check_statistics(description: Checkpoint) -> Finding:
    names = sorted(description.norm_stats)
    if not names:
        remedy = (
            "put the dataset_statistics.json of the data it was fine-tuned on beside config.json"
        )
        return Finding(
            "statistics", "fail", "no action statistics: actions cannot be un-normalised", remedy
        )
    shown = ", ".join(map(dataset_name, names[:SHOWN_DATASETS]))
    more = f" and {len(names) - SHOWN_DATASETS} more" if len(names) > SHOWN_DATASETS else ""
    found = f"{len(names)} dataset{'s' if len(names) > 1 else ''}: {shown}{more}"
    if len(names) > 1 and description.unnorm_key is None:
        return Finding("statistics", "ok", f"{found}; choose one with --policy.unnorm-key")
    chosen = choose_statistics(description, None)
    return Finding("statistics", "ok", f"{found}; actions of size {chosen.action_dim}")


def _check_adapters(source: Source) -> Finding:
    lora = source.description.lora
    if source.weights.adapters:
        found = [f"rank {a.rank} on {len(a.layers)} layers" for a in source.weights.adapters]
        return Finding("adapters", "ok", f"{'; '.join(found)}; merged when loaded")
    if lora is None:
        return Finding("adapters", "ok", "none")
    tensors = read_own_adapters(source.folder, source.description.model, lora)
    where = "language model and vision towers" if lora.vision else "language model"
    weights = sum(tensor.numel() for tensor in tensors.values())
    found = f"rank {lora.rank}, alpha {lora.alpha}, on the {where}: {weights / 1e6:,.1f} M weights"
    return Finding("adapters", "ok", found)


def _check_critic(source: Source) -> Finding:
    config = source.description.critic
    if config is None or config.kind == "none":
        return Finding("critic", "ok", "none; training starts one")
    file, tensors = critic_file(source), read_tensors([critic_file(source)])
    with shapes_alone():
        critic = build_critic(config, critic_sizes(source.description.model))
    check_fit(tensors, critic.state_dict(), file, f"a {config.kind} critic")
    weights = sum(tensor.numel() for tensor in tensors.values())
    return Finding("critic", "ok", f"{config.kind}, {weights / 1e6:,.1f} M weights")


def _fits(
    model: ModelConfig, lora: LoraConfig | None, entries: Mapping[str, TensorEntry]
) -> list[Finding]:
    """What this machine's memory is enough for."""
    return [
        _fits_host(_count(entries), entries),
        _fits_gpu(model, lora or LoraConfig(), total_gpu_memory()),
    ]


def _fits_host(count: int, entries: Mapping[str, TensorEntry]) -> Finding:
    free = psutil.virtual_memory().available
    largest = 4 * max(math.prod(entry.shape) for entry in entries.values())
    full, half = 4 * count + 2 * largest, 2 * count + 2 * largest
    found = f"{free / GB:.1f} GB free; loading takes {full / GB:.1f} GB in float32, {half / GB:.1f} GB in bfloat16"
    if free > full:
        return Finding("host memory", "ok", found)
    if free > half:
        return Finding(
            "host memory", "warn", found, "on the CPU, load it with --policy.dtype bfloat16"
        )
    remedy = "loading onto a GPU takes one tensor at a time and needs none of this; on the CPU it does not fit"
    return Finding("host memory", "warn", found, remedy)


def _fits_gpu(model: ModelConfig, lora: LoraConfig, memory: float | None) -> Finding:
    kind = torch.bfloat16 if _is_large(model) else torch.float32
    playing = inference_budget(model, kind)
    batch = PPOConfig().minibatch
    learning = training_budget(model, lora, kind, checkpointing=True)
    needs = (
        f"inference takes {playing.total(1) / GB:.1f} GB, LoRA training with activation checkpointing "
        f"{learning.total(1) / GB:.1f} GB ({str(kind).removeprefix('torch.')}, rank {lora.rank})"
    )
    if memory is None:
        return Finding(
            "gpu memory", "ok" if not _is_large(model) else "warn", f"no GPU here; {needs}"
        )
    found = f"{memory / GB:.0f} GB; {needs}"
    if memory < playing.total(1):
        return Finding("gpu memory", "fail", found, "take a GPU with more memory")
    most = min(learning.most_samples(memory), batch)
    if most == 0:
        return Finding("gpu memory", "warn", f"{found}: enough to evaluate, not to train")
    observations = playing.most_samples(memory)
    return Finding(
        "gpu memory",
        "ok",
        f"{found}: {observations} observations at once, micro-batches up to {most}",
    )


def _is_large(model: ModelConfig) -> bool:
    return count_weights(model)[0] >= LARGE_MODEL


def total_gpu_memory() -> float | None:
    """Bytes of the first GPU, None without one."""
    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory)
