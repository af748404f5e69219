"""Randomly initialised image-text models of four families of transformers, small enough for a test, as folders.

Configurations, tokenizers and processors are written by the library's own code; nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIDE = 28
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512,
}  # fmt: skip
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_image_text_model(family: str, folder: Path, *, tied: bool = False) -> Path:
    """The folder of a tiny model of the family, a key of FAMILIES."""
    FAMILIES[family](folder, tied)
    return folder


def _tokenizer(special: Sequence[str], **named: Any) -> Any:
    """One token a byte, and the special ones after them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def _save(model_class: Any, config: Any, folder: Path) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        # larger than the default: answers should depend visibly on what is seen
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
    model.save_pretrained(folder)


def _template(folder: Path, image: str) -> None:
    (folder / "chat_template.jinja").write_text(CHAT.replace("IMAGE", image))


def _qwen(version: str) -> Callable[[Path, bool], None]:
    def write(folder: Path, tied: bool) -> None:
        import transformers
        from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as images

        special = (*TURNS, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
        tokenizer = _tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        tokenizer.save_pretrained(folder)
        ids = tokenizer.convert_tokens_to_ids
        vision = {
            "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 7,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32,
        }  # fmt: skip
        if version == "Qwen2_5_VL":
            vision |= {"window_size": 28, "fullatt_block_indexes": [0]}
        else:  # what Qwen3-VL takes from its lower layers
            vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
        text = SMALL | {
            "vocab_size": 300, "rope_parameters": rope, "eos_token_id": ids("<|im_end|>"),
            "bos_token_id": None, "pad_token_id": ids("<|endoftext|>"), "head_dim": 16,
        }  # fmt: skip
        config = getattr(transformers, f"{version}Config")(
            text_config=text, vision_config=vision, image_token_id=ids("<|image_pad|>"),
            video_token_id=ids("<|video_pad|>"), vision_start_token_id=ids("<|vision_start|>"),
            vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=tied,
        )  # fmt: skip
        _save(getattr(transformers, f"{version}ForConditionalGeneration"), config, folder)
        images.Qwen2VLImageProcessorPil(
            patch_size=7, merge_size=2, temporal_patch_size=2,
            size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
        ).save_pretrained(folder)  # fmt: skip
        _template(folder, "<|vision_start|><|image_pad|><|vision_end|>")

    return write


def _idefics3(folder: Path, tied: bool) -> None:
    """SmolVLM's architecture; its own processor needs torchvision and num2words on top."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3 import image_processing_pil_idefics3 as images

    tiles = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    special = (
        *TURNS, "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles,
    )  # fmt: skip
    tokenizer = _tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = tokenizer.convert_tokens_to_ids
    config = Idefics3Config(
        text_config=SMALL | {
            "model_type": "llama", "vocab_size": 304, "pad_token_id": ids("<|endoftext|>"),
            "bos_token_id": None, "eos_token_id": ids("<|im_end|>"), "tie_word_embeddings": tied,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": SIDE, "patch_size": 7,
        },
        image_token_id=ids("<image>"), scale_factor=2, tie_word_embeddings=tied,
        pad_token_id=ids("<|endoftext|>"),
    )  # fmt: skip
    _save(Idefics3ForConditionalGeneration, config, folder)
    processor = Idefics3Processor(
        images.Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=True,
        ),
        tokenizer, image_seq_len=4, chat_template=CHAT.replace("IMAGE", "<image>"),
    )  # fmt: skip
    processor.save_pretrained(folder)


def _paligemma(folder: Path, tied: bool) -> None:
    """Without a chat template, as published; its prompt sees all of itself."""
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
    )
    from transformers.models.siglip import image_processing_pil_siglip as images

    tokenizer = _tokenizer(
        ("<pad>", "<eos>", "<bos>"), pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    image_processor = images.SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    image_processor.image_seq_length = 4
    processor = PaliGemmaProcessor(image_processor, tokenizer)
    processor.save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    config = PaliGemmaConfig(
        text_config=SMALL | {
            "model_type": "gemma", "vocab_size": len(tokenizer), "head_dim": 16, "pad_token_id": ids("<pad>"),
            "bos_token_id": ids("<bos>"), "eos_token_id": ids("<eos>"), "tie_word_embeddings": tied,
        },
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": SIDE, "patch_size": 14, "projection_dim": 32,
            "vision_use_head": False,
        },
        image_token_index=ids("<image>"), projection_dim=32, tie_word_embeddings=tied,
    )  # fmt: skip
    _save(PaliGemmaForConditionalGeneration, config, folder)


def _internvl(folder: Path, tied: bool) -> None:
    from transformers import InternVLConfig, InternVLForConditionalGeneration
    from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as images

    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = _tokenizer(
        (*TURNS, *named.values()), eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens=named,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    config = InternVLConfig(
        text_config=SMALL | {
            "model_type": "qwen2", "vocab_size": 300, "tie_word_embeddings": tied,
            "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"), "bos_token_id": None,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": [SIDE, SIDE], "patch_size": [7, 7],
        },
        image_token_id=ids("<IMG_CONTEXT>"), downsample_ratio=0.5, image_seq_length=4, tie_word_embeddings=tied,
    )  # fmt: skip
    _save(InternVLForConditionalGeneration, config, folder)
    images.GotOcr2ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, crop_to_patches=True, min_patches=1, max_patches=4,
    ).save_pretrained(folder)  # fmt: skip
    described = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
    (folder / "processor_config.json").write_text(json.dumps(described))
    _template(folder, "<IMG_CONTEXT>")


FAMILIES: dict[str, Callable[[Path, bool], None]] = {
    "qwen2_5_vl": _qwen("Qwen2_5_VL"),
    "qwen3_vl": _qwen("Qwen3VL"),
    "idefics3": _idefics3,
    "paligemma": _paligemma,
    "internvl": _internvl,
}
