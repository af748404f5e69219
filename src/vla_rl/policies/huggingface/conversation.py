"""What a model is asked: images and instruction as a conversation in its own chat template, by its own processor.

    user:       <image> [<image of the wrist camera>] What action should the robot take to open the drawer?
    assistant:  K action tokens

Rows of different length are padded on the left: all prompts then end in one column, and the tokens that are decoded
stand in the columns after it. The processor says which columns count (attention_mask); positions are made from it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from vla_rl.config.errors import UserError
from vla_rl.policies.huggingface.action_ids import image_id
from vla_rl.policies.prompts import Prompts
from vla_rl.runtime.extras import need
from vla_rl.types import Observation

Inputs = dict[str, Tensor]
"""What the processor makes of a batch, by the names of the model's arguments."""

INSTRUCTION = "{instruction}"
NOT_FOR_THE_MODEL = ("labels",)


class Conversation:
    """Asks one model. Its tokenizer may be used by several threads."""

    def __init__(self, processor: Any, config: Any, prompt: str, name: str) -> None:
        """name: what errors call the model."""
        need("PIL", purpose="showing images to a model of Hugging Face")
        self.processor, self.tokenizer, self.prompt = processor, processor.tokenizer, prompt
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            # what stands in padded columns is looked at by nothing
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        self.template = getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        self._image_id = image_id(config)
        self._name = name
        # fast tokenizers keep the settings of padding inside
        self._lock = threading.Lock()
        if self.template is None and "paligemma" not in config.model_type:
            raise UserError(
                f"{name} has no chat template (chat_template.jinja or chat_template.json): take the instruct version "
                "of the model"
            )
        if self._image_id is None:
            raise UserError(
                f"{name} is a {config.model_type!r} model, which has no token that stands for an image: expected one "
                "that reads images as tokens among its text, such as Qwen2.5-VL, SmolVLM, PaliGemma or InternVL"
            )
        self.text = lru_cache(maxsize=4096)(self._text)

    def _text(self, instruction: str, images: int) -> str:
        """The conversation up to the assistant's first token, as text."""
        asked = self.prompt.replace(INSTRUCTION, instruction)
        if self.template is None:  # PaliGemma's processor knows how it is asked
            return self.processor.image_token * images + asked
        content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": asked}]
        try:
            return self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # a template is a program of somebody else's, in a sandbox
            raise UserError(
                f"{self._name}: its chat template refuses a message of an image and a text ({error})"
            ) from error

    def inputs(self, observation: Observation, device: torch.device) -> Inputs:
        """The batch for the model, on its device. UserError where the images do not reach it."""
        from PIL import Image

        views = [observation.images]
        if observation.wrist is not None:
            views.append(observation.wrist)
        frames = [[Image.fromarray(view[row]) for view in views] for row in range(len(observation))]
        texts = [self.text(words, len(views)) for words in observation.instructions]
        bos = self.tokenizer.bos_token
        # of templates that begin with it; else there would be two
        options = {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}
        try:
            with self._lock:
                batch = self.processor(
                    text=texts, images=frames, padding=True, return_tensors="pt", **options
                )
        except (ValueError, TypeError, KeyError, IndexError) as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"{self._name}: its processor cannot read the conversation that its chat template makes of an image "
                f"and a text ({first[0]})"
            ) from error
        inputs = {
            name: value
            for name, value in batch.items()
            if isinstance(value, Tensor) and name not in NOT_FOR_THE_MODEL
        }
        shown = (inputs["input_ids"] == self._image_id).any(1)
        if not bool(shown.all()) or "pixel_values" not in inputs:
            raise UserError(
                f"{self._name}: its processor puts no image tokens (id {self._image_id}) into the conversation: the "
                "chat template and the processor belong to different models"
            )
        return {name: value.to(device) for name, value in inputs.items()}

    def words(self, instructions: Sequence[str], device: torch.device) -> Prompts:
        """The instructions alone, for a critic of its own."""
        rows = [self._ids(text) for text in instructions]
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for row, own in enumerate(rows):
            ids[row, : len(own)] = torch.tensor(own)
        return Prompts(ids.to(device), lengths)

    def _ids(self, text: str) -> list[int]:
        with self._lock:
            return self.tokenizer.encode(text, add_special_tokens=False) or [0]


def critic_pixels(
    images: UInt8[np.ndarray, "N H W 3"], side: int, device: torch.device
) -> Float32[Tensor, "N 3 side side"]:
    """Frames of any size for a critic of its own, 0..255."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float()
    if pixels.shape[-2:] == (side, side):
        return pixels.contiguous()
    return F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)


def with_answer(inputs: Inputs, ids: Int64[Tensor, "N k"], suffix_type: int) -> Inputs:
    """The batch with k tokens of the answer after every prompt."""
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    mask = inputs["attention_mask"]
    longer["attention_mask"] = torch.cat([mask, mask.new_ones(ids.shape)], 1)
    for name, kind in (("token_type_ids", suffix_type), ("mm_token_type_ids", 0)):
        if name in inputs:
            types = inputs[name]
            longer[name] = torch.cat([types, types.new_full(ids.shape, kind)], 1)
    return longer
