"""An image-text model as a policy, from a folder or the hub: a model as published, a policy of ours, or adapters."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vla_rl.config.errors import UserError
from vla_rl.config.policy import Conventions, LoraConfig, PolicyConfig
from vla_rl.policies.action_tokens import select_statistics
from vla_rl.policies.huggingface import backbone
from vla_rl.policies.huggingface.action_ids import (
    add_action_tokens,
    check_ids,
    image_id,
    last_ids,
)
from vla_rl.policies.huggingface.adapters import add_adapters, load_adapters, read_adapters
from vla_rl.policies.huggingface.conversation import INSTRUCTION
from vla_rl.policies.huggingface.description import (
    SECTION_FILE,
    Description,
    Section,
    processor_files,
    read_norm_stats,
    read_section,
)
from vla_rl.policies.openvla.lora import same_shape
from vla_rl.policies.safetensors_files import model_entries, sample_digest
from vla_rl.runtime.bases import is_adapter_folder, named_base
from vla_rl.runtime.extras import need
from vla_rl.runtime.hub import checkpoint_folder

LARGE = 1_000_000_000
"""Weights from which on a model is kept in bfloat16 on a GPU."""


@dataclass(frozen=True)
class Source:
    """Where a policy's files lie."""

    reference: str
    folder: Path
    """Of the adapters, or of the whole model."""
    base: str
    """Folder or hub id of the model."""
    base_folder: Path
    section: Section | None
    """None: a model as published, which has not learned to act."""

    @property
    def adapted(self) -> bool:
        return self.folder != self.base_folder


@dataclass(frozen=True)
class Parts:
    """What a policy is made of."""

    model: Any
    processor: Any
    description: Description
    name: str
    """What errors call it."""
    critic_file: Path | None
    tokens_added: bool
    """Whether the tokenizer has tokens now that its files do not."""


def find_source(reference: str | Path, base: str = "") -> Source:
    """The files of a policy. Raises UserError where the folder is missing or its adapters have no model."""
    folder = checkpoint_folder(reference)
    if not folder.is_dir():
        raise UserError(
            f"No checkpoint folder at {folder}: give a folder, or a hub id (owner/name)"
        )
    section = read_section(folder)
    if not is_adapter_folder(folder):
        return Source(str(reference), folder, str(reference), folder, section)
    if section is None or section.lora is None:
        raise UserError(
            f"{folder} holds adapters without {SECTION_FILE}, which says what their tokens mean: merge them into their "
            "model with peft (merge_and_unload), save that, and fine-tune it with `vla-rl sft`"
        )
    named = base or named_base(folder)
    if not named:
        raise UserError(f"{folder} holds adapters that name no model: give it with policy.base")
    base_folder = checkpoint_folder(named)
    if not base_folder.is_dir():
        raise UserError(
            f"{folder} holds adapters for the model {named}, which is not there: give it with policy.base"
        )
    if is_adapter_folder(base_folder):
        raise UserError(
            f"{folder} holds adapters for {named}, which are adapters themselves: merge those into their model first"
        )
    return Source(str(reference), folder, named, base_folder, section)


def load_parts(
    reference: str | Path,
    config: PolicyConfig,
    device: torch.device,
    *,
    unnorm_key: str | None,
    dtype: torch.dtype | None,
    seed: int,
    conventions: Conventions | None,
) -> Parts:
    """Everything of a policy but its critic's weights. Raises UserError for files that do not fit together."""
    need("transformers", "PIL", purpose="a policy on a model of Hugging Face")
    _refuse_other_images(config)
    source = find_source(reference, config.base)
    entries = model_entries(source.base_folder)
    section = source.section
    digest = sample_digest(entries)
    if section is not None and section.base_digest not in (None, digest):
        raise UserError(
            f"{source.folder} holds adapters for another model than the one in {source.base}: its weights are not "
            "those that the adapters were trained on. Give theirs with policy.base"
        )
    processor = _load_processor(source)
    total = sum(entry.bytes // entry.dtype.itemsize for entry in entries.values())
    precision = dtype or _precision(config.dtype, total, device)
    model = _load_model(source, precision)
    lora = section.lora if section is not None else None
    if config.lora is not None and lora is not None and not same_shape(config.lora, lora):
        raise UserError(
            f"{reference} has adapters of rank {lora.rank}, alpha {lora.alpha}: policy.lora asks for others. Leave it "
            "out, or give the same"
        )
    ids, added = _action_ids(source, model, processor, config, seed)
    description = _describe(source, config, ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _train_what(model, lora, config.lora, source)
    if source.adapted or config.lora is not None:
        settings = lora or config.lora
        base = source.base if source.adapted else str(reference)
        description = replace(description, lora=settings, base=base, base_digest=digest)
    description = _with_statistics(
        source, description, unnorm_key or config.unnorm_key, conventions
    )
    if config.gripper != "checkpoint":
        description = replace(description, gripper=config.gripper)
    critic = source.folder / "critic.safetensors"
    return Parts(
        model.to(device).eval(), processor, description, str(reference),
        critic if critic.is_file() else None, added,
    )  # fmt: skip


def frozen_model(
    reference: Path | str, config: PolicyConfig, like: Any, device: torch.device
) -> Any:
    """The model of a checkpoint alone, for a reference. like: the trained one, whose precision it has."""
    source = find_source(reference, config.base)
    model = _load_model(source, like.dtype)
    section = source.section
    if section is not None and section.lora is not None:
        add_adapters(model, section.lora)
        load_adapters(model, read_adapters(source.folder, model))
    return model.to(device).eval().requires_grad_(False)


def stored_dtype(reference: str | Path, base: str = "") -> torch.dtype:
    """The precision that most of the model's weights are stored in."""
    entries = model_entries(find_source(reference, base).base_folder).values()
    half = sum(entry.bytes for entry in entries if entry.dtype == torch.bfloat16)
    return torch.bfloat16 if 2 * half > sum(entry.bytes for entry in entries) else torch.float32


def _refuse_other_images(config: PolicyConfig) -> None:
    if config.images not in ("checkpoint", "as-is"):
        raise UserError(
            f"policy.images {config.images} is for OpenVLA's checkpoints: a model of Hugging Face has an image "
            "processor of its own. Leave it out"
        )
    if config.activation_checkpointing:
        raise UserError(
            "policy.activation_checkpointing is for OpenVLA's models: leave it out, and set a smaller micro_batch"
        )


def _load_processor(source: Source) -> Any:
    """The processor of a model whose answer goes on where the conversation ends; UserError for another model."""
    config = backbone.load_config(str(source.base_folder))
    if config.is_encoder_decoder:
        raise UserError(
            f"{source.base} is a {config.model_type!r} model with an encoder for the text, expected one whose answer "
            "goes on where the conversation ends, such as Qwen2.5-VL, SmolVLM, PaliGemma or InternVL"
        )
    if not hasattr(_generation(), "_prepare_position_ids_for_generation"):
        raise UserError(
            "a policy on a model of Hugging Face needs transformers 5 (5.23 is what it was tried with): pip install "
            "--upgrade transformers"
        )
    return backbone.load_processor(str(source.base_folder), config, template=False)


def _generation() -> Any:
    from transformers import GenerationMixin

    return GenerationMixin


def _precision(wanted: str, weights: int, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        half = device.type == "cuda" and weights >= LARGE
        return torch.bfloat16 if half else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _load_model(source: Source, dtype: torch.dtype) -> Any:
    """The whole model. UserError unless every weight is there and finite: what is missing would be made up."""
    import transformers

    folder = str(source.base_folder)
    model, report = backbone.attempt(
        source.base, "safetensors weights of an image-text model",
        lambda: transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True,
        ),
    )  # fmt: skip
    found = report if isinstance(report, dict) else vars(report)
    for what, named in (("are missing", "missing_keys"), ("have another shape", "mismatched_keys")):
        names = sorted(str(name) for name in found.get(named) or ())
        if names:
            raise UserError(
                f"{source.base}: {len(names)} of the model's weights {what} ({names[0]}): config.json and the weights "
                "belong to different models, or a file is incomplete"
            )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(
                f"{source.base}: {name} holds NaN or infinite weights: the file is damaged; copy it again"
            )
    return model


def _action_ids(
    source: Source, model: Any, processor: Any, config: PolicyConfig, seed: int
) -> tuple[tuple[int, ...], bool]:
    """Which ids are actions, and whether tokens were added for them just now."""
    rows = model.get_output_embeddings().weight.shape[0]
    if source.section is not None:
        forbidden = {i for i in (image_id(model.config),) if i is not None}
        where = str(source.folder / SECTION_FILE)
        check_ids(source.section.action_ids, rows, forbidden, where)
        return source.section.action_ids, False
    if config.vlm.action_tokens == "last":
        return last_ids(processor.tokenizer, rows, config.vlm.bins), False
    if config.lora is not None:
        raise UserError(
            "policy.vlm.action-tokens added makes new rows of the embedding, which adapters leave as they are: train "
            "all weights (leave out policy.lora), or take policy.vlm.action-tokens last"
        )
    return add_action_tokens(model, processor.tokenizer, config.vlm.bins, seed), True


def _describe(source: Source, config: PolicyConfig, ids: tuple[int, ...]) -> Description:
    files, section = processor_files(source.base_folder), source.section
    if section is None:
        return Description(config.vlm.prompt, ids, files=files)
    if INSTRUCTION not in section.prompt:
        raise UserError(f"{source.folder / SECTION_FILE}: its prompt does not hold {INSTRUCTION}")
    return Description(
        section.prompt, ids, section.action_dim, section.action_chunk, section.gripper, {}, section.unnorm_key,
        section.unnorm_keys, section.critic, section.lora, files=files,
    )  # fmt: skip


def _with_statistics(
    source: Source, description: Description, key: str | None, conventions: Conventions | None
) -> Description:
    if source.section is None:
        return description
    norm_stats = read_norm_stats(source.folder)
    likely = conventions.unnorm_key if conventions is not None else ""
    chosen = key or description.unnorm_key or (likely if likely in norm_stats else None)
    name, statistics = select_statistics(norm_stats, chosen)
    if not description.unnorm_keys and statistics.q01.size != description.action_dim:
        raise UserError(
            f"{source.folder}: action statistics of {name!r} have {statistics.q01.size} dimensions, the policy "
            f"{description.action_dim}"
        )
    return replace(description, norm_stats=norm_stats, unnorm_key=name)


def _train_what(
    model: Any, stored: LoraConfig | None, asked: LoraConfig | None, source: Source
) -> None:
    """Adapters, stored or fresh; without any, all weights."""
    model.requires_grad_(True)
    settings = stored or asked
    if settings is None:
        return
    if stored is not None and asked is not None:
        settings = replace(stored, dropout=asked.dropout)
    add_adapters(model, settings)
    if stored is not None:
        load_adapters(model, read_adapters(source.folder, model))


def twin(model: Any) -> Any:
    """A frozen copy of all weights."""
    return copy.deepcopy(model).requires_grad_(False).eval()
