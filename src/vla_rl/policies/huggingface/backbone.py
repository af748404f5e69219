"""Any image-text model of Hugging Face as a backbone: loading it, its processor and its adapters."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vla_rl.config import LoraConfig, UserError
from vla_rl.runtime.extras import need
from vla_rl.runtime.hub import hub_id


def load_backbone(reference: str, dtype: str, device: torch.device) -> tuple[Any, Any]:
    """Model (frozen) and processor of a folder or hub id. Raises UserError for anything but an image-text model."""
    transformers = _transformers()
    source, options = _source(reference)
    config = load_config(reference)
    processor = load_processor(reference, config)
    half = dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda")
    model = attempt(
        reference, "safetensors weights of an image-text model",
        lambda: transformers.AutoModelForImageTextToText.from_pretrained(
            source, dtype=torch.bfloat16 if half else torch.float32, trust_remote_code=False,
            use_safetensors=True, **options,
        ),
    )  # fmt: skip
    return model.requires_grad_(False), processor


def load_config(reference: str) -> Any:
    """The model's configuration. Raises UserError for anything but an image-text model."""
    transformers = _transformers()
    source, options = _source(reference)
    config = attempt(
        reference, "a config.json of an image-text model",
        lambda: transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **options),
    )  # fmt: skip
    if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise UserError(
            f"{reference} is a {config.model_type!r} model, expected one that takes images and text and answers with "
            "text (transformers' AutoModelForImageTextToText), such as Qwen/Qwen2-VL-2B-Instruct"
        )
    return config


def load_processor(reference: str, config: Any, *, template: bool = True) -> Any:
    """The processor: tokenizer, image processor and chat template. Raises UserError where one of them is missing.

    template: whether a chat template must be there.
    """
    transformers = _transformers()
    source, options = _source(reference)
    what = "a processor (preprocessor_config.json, tokenizer.json)"

    def load() -> Any:
        try:
            return transformers.AutoProcessor.from_pretrained(
                source, trust_remote_code=False, **options
            )
        except (ImportError, ValueError) as error:
            # of models that also take videos the processor needs torchvision; no videos are shown here
            if isinstance(error, ValueError) and "torchvision" not in str(error):
                raise
            return _processor_without_videos(source, options, config)

    processor = attempt(reference, what, load)
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise UserError(
                f"{reference} has no {part.replace('_', ' ')}: expected {what}. Copy the files that came with the model"
            )
    if template and not getattr(processor, "chat_template", None):
        raise UserError(
            f"{reference} has no chat template (chat_template.jinja or chat_template.json): take the instruct version "
            "of the model"
        )
    return processor


def _processor_without_videos(source: str, options: dict[str, Any], config: Any) -> Any:
    """The processor put together from its parts, but for the one that takes videos."""
    transformers = _transformers()
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind: Any = PROCESSOR_MAPPING[type(config)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        source, trust_remote_code=False, **options
    )
    parts: dict[str, Any] = {"tokenizer": tokenizer}
    wanted = inspect.signature(kind.__init__).parameters
    if "image_processor" in wanted:
        parts["image_processor"] = transformers.AutoImageProcessor.from_pretrained(
            source, trust_remote_code=False, **options
        )
    described, _ = kind.get_processor_dict(source, **options)
    template = described.get("chat_template") or tokenizer.chat_template
    numbers = {
        name: value
        for name, value in described.items()
        if name in wanted and name not in parts and isinstance(value, bool | int | float | str)
    }
    return _images_only(kind)(**{**parts, **numbers, "chat_template": template})


def _images_only(kind: type[Any]) -> type[Any]:
    """The processor's class, content without a video processor."""

    def check(self: Any, name: str, argument: Any) -> Any:
        if "video" in name and argument is None:
            return type(None)
        return kind.check_argument_for_proper_class(self, name, argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})


def with_adapters(model: Any, config: LoraConfig, seed: int) -> Any:
    """Fresh float32 adapters on the language model's linear layers; if asked for, on all others but the output head."""
    need("peft", purpose="LoRA")
    import peft

    language = {id(module) for module in model.get_decoder().modules()}
    head = id(model.get_output_embeddings())
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) != head
        and (config.vision or id(module) in language)
    ]
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=names,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, settings)
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # in bfloat16 small steps would be rounded away
            parameter.data = parameter.data.float()
    return adapted


def base_model(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _source(reference: str) -> tuple[str, dict[str, Any]]:
    """What transformers is told: a folder that must exist, or a hub repository and its revision."""
    named = hub_id(reference)
    if named is not None:
        repository, revision = named
        return repository, {} if revision is None else {"revision": revision}
    if not os.path.isdir(reference):
        raise UserError(
            f"there is no folder {reference!r}: expected a folder with an image-text model, or a hub id such as "
            "Qwen/Qwen2-VL-2B-Instruct"
        )
    return reference, {}


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers draws no progress bars of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


_WORDS_OF_THE_LIBRARY = 300
"""Characters of its message that are shown: some name every model that there is."""


def attempt(reference: str, expected: str, load: Any) -> Any:
    """load(), with what transformers raises for a folder or repository that is not as it should be as a UserError."""
    try:
        with quiet():
            return load()
    except Exception as error:  # the library's own kinds of error, its dataclasses', the system's
        lines = str(error).strip().splitlines() or [type(error).__name__]
        words = textwrap.shorten(lines[0], _WORDS_OF_THE_LIBRARY, placeholder=" ...")
        raise UserError(
            f"{reference}: expected {expected}, and transformers could not load it ({words}). Code of a repository "
            "is never run, and pickled weights are never read"
        ) from error


def _transformers() -> Any:
    need("transformers", purpose="a model of Hugging Face")
    import transformers

    return transformers
