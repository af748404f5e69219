"""Look at a checkpoint without loading it: what is in it, whether it is whole, and what this machine can do with it.

Only JSON and the headers of weight files are read, so a 15 GB checkpoint takes seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import torch

from vla_rl.config import LoraConfig, ModelConfig, PPOConfig, UserError
from vla_rl.diagnostics.machine import Check
from vla_rl.policies import select_statistics
from vla_rl.policies.openvla.checkpoint import CRITIC_FILE, check_fit, weights_of
from vla_rl.policies.openvla.config_files import Checkpoint
from vla_rl.policies.openvla.loading import LARGE_MODEL, Source, find_source
from vla_rl.policies.openvla.memory import GB, count_weights, inference_budget, training_budget
from vla_rl.policies.openvla.model import OpenVLA
from vla_rl.policies.openvla.tokenizer import load_tokenizer
from vla_rl.policies.safetensors_files import TensorEntry, read_header
from vla_rl.runtime.locate import locate_policy

SHOWN_DATASETS = 8


def examine_checkpoint(reference: str) -> list[Check]:
    """The findings about a folder, a run, an adapter or a hub id, in the order in which one would mend them."""
    try:
        source = find_source(str(locate_policy(Path(reference))[0]))
    except UserError as error:
        return [Check("checkpoint", "fail", str(error), _mend(reference))]
    description = source.description
    checks = [Check("checkpoint", "ok", f"{source.folder}: {_kind(source)}")]
    checks.append(Check("model", "ok", _sizes(description.model)))
    weights = _guarded("weights", lambda: _check_weights(source))
    checks.append(weights)
    checks.append(_guarded("tokenizer", lambda: _check_tokenizer(source)))
    checks.append(_check_statistics(description))
    checks.append(_guarded("adapters", lambda: _check_adapters(source)))
    checks.append(_guarded("critic", lambda: _check_critic(source)))
    if weights.status == "ok":
        checks += _fits(description.model, description.lora, weights_of(source.weights.folder))
    return checks


def _mend(reference: str) -> str:
    return f"give a folder with config.json, a run, or a hub id such as openvla/openvla-7b instead of {reference}"


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except UserError as error:
        return Check(name, "fail", str(error), "copy or download the checkpoint again")


def _kind(source: Source) -> str:
    if source.weights.adapters:
        return f"adapters in PEFT's format on {source.weights.folder}"
    if source.description.lora is not None:
        return (
            f"a checkpoint of vla-rl with adapters on {source.description.base or 'its own base'}"
        )
    ours = source.description.action_chunk > 1 or source.description.critic is not None
    return "a checkpoint of vla-rl" if ours else "a checkpoint in OpenVLA's format"


def _sizes(model: ModelConfig) -> str:
    language = model.language
    towers = " + ".join(f"{t.width} x {t.depth}" for t in (model.dino, model.siglip))
    return (
        f"{model.name}: {model.image_size} px, vision towers {towers} (width x blocks), language model "
        f"{language.hidden} x {language.layers}, {model.action_bins} action values"
    )


def _check_weights(source: Source) -> Check:
    entries = weights_of(source.weights.folder)
    model = source.description.model
    with torch.device("meta"):
        wanted = OpenVLA(model).state_dict()
    check_fit(entries, wanted, source.weights.folder, f"a model {model.name!r}")
    for adapter in source.weights.adapters:
        adapter.check(entries)
    kinds = Counter(str(entry.dtype).removeprefix("torch.") for entry in entries.values())
    files = len({entry.file for entry in entries.values()})
    size = sum(entry.bytes for entry in entries.values())
    found = (
        f"{_count(entries) / 1e6:,.1f} M weights, {len(entries)} tensors of {', '.join(kinds)} in {files} file"
        f"{'s' if files > 1 else ''}, {size / GB:.2f} GB; complete"
    )
    return Check("weights", "ok", found)


def _count(entries: Mapping[str, TensorEntry]) -> int:
    return sum(math.prod(entry.shape) for entry in entries.values())


def _check_tokenizer(source: Source) -> Check:
    tokenizer = load_tokenizer(source.tokenizer)
    return Check("tokenizer", "ok", f"{tokenizer.get_vocab_size():,} tokens")


def _check_statistics(description: Checkpoint) -> Check:
    names = sorted(description.norm_stats)
    if not names:
        mend = "put the dataset_statistics.json of the data it was fine-tuned on beside config.json"
        return Check(
            "statistics", "fail", "no action statistics: actions cannot be un-normalised", mend
        )
    shown = ", ".join(names[:SHOWN_DATASETS])
    more = f" and {len(names) - SHOWN_DATASETS} more" if len(names) > SHOWN_DATASETS else ""
    found = f"{len(names)} dataset{'s' if len(names) > 1 else ''}: {shown}{more}"
    try:
        for name in names:
            select_statistics(description.norm_stats, name)
    except UserError as error:
        return Check("statistics", "fail", str(error), "copy dataset_statistics.json again")
    if len(names) > 1 and description.unnorm_key is None:
        return Check("statistics", "ok", f"{found}; choose one with --policy.unnorm-key")
    return Check("statistics", "ok", f"{found}; actions of size {description.action_dim}")


def _check_adapters(source: Source) -> Check:
    lora = source.description.lora
    if source.weights.adapters:
        found = [f"rank {a.rank} on {len(a.layers)} layers" for a in source.weights.adapters]
        return Check("adapters", "ok", f"{'; '.join(found)}; merged when loaded")
    if lora is None:
        return Check("adapters", "ok", "none")
    entries = read_header(source.folder / "adapter_model.safetensors")
    where = "language model and vision towers" if lora.vision else "language model"
    found = f"rank {lora.rank}, alpha {lora.alpha}, on the {where}: {_count(entries) / 1e6:,.1f} M weights"
    return Check("adapters", "ok", found)


def _check_critic(source: Source) -> Check:
    critic = source.description.critic
    if critic is None:
        return Check("critic", "ok", "none; training starts one")
    entries = read_header(source.folder / CRITIC_FILE)
    return Check("critic", "ok", f"{critic.kind}, {_count(entries) / 1e6:,.1f} M weights")


def _fits(
    model: ModelConfig, lora: LoraConfig | None, entries: Mapping[str, TensorEntry]
) -> list[Check]:
    """What this machine's memory is enough for."""
    return [
        _fits_host(_count(entries), entries),
        _fits_gpu(model, lora or LoraConfig(), total_gpu_memory()),
    ]


def _fits_host(count: int, entries: Mapping[str, TensorEntry]) -> Check:
    free = psutil.virtual_memory().available
    largest = 4 * max(math.prod(entry.shape) for entry in entries.values())
    full, half = 4 * count + 2 * largest, 2 * count + 2 * largest
    found = f"{free / GB:.1f} GB free; loading takes {full / GB:.1f} GB in float32, {half / GB:.1f} GB in bfloat16"
    if free > full:
        return Check("host memory", "ok", found)
    if free > half:
        return Check(
            "host memory", "warn", found, "on the CPU, load it with --policy.dtype bfloat16"
        )
    mend = "loading onto a GPU takes one tensor at a time and needs none of this; on the CPU it does not fit"
    return Check("host memory", "warn", found, mend)


def _fits_gpu(model: ModelConfig, lora: LoraConfig, memory: float | None) -> Check:
    kind = torch.bfloat16 if _is_large(model) else torch.float32
    playing = inference_budget(model, kind)
    batch = PPOConfig().minibatch
    learning = training_budget(model, lora, kind, checkpointing=True)
    needs = (
        f"inference takes {playing.total(1) / GB:.1f} GB, LoRA training with activation checkpointing "
        f"{learning.total(1) / GB:.1f} GB ({str(kind).removeprefix('torch.')}, rank {lora.rank})"
    )
    if memory is None:
        return Check(
            "gpu memory", "ok" if not _is_large(model) else "warn", f"no GPU here; {needs}"
        )
    found = f"{memory / GB:.0f} GB; {needs}"
    if memory < playing.total(1):
        return Check("gpu memory", "fail", found, "take a GPU with more memory")
    most = min(learning.most_samples(memory), batch)
    if most == 0:
        return Check("gpu memory", "warn", f"{found}: enough to evaluate, not to train")
    observations = playing.most_samples(memory)
    return Check(
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
