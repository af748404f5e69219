"""The reward model on any image-text model of Hugging Face, with adapters. The paper's authors take Qwen2-VL-2B.

It is loaded through AutoModelForImageTextToText and AutoProcessor, from a folder or the hub. Weights are safetensors,
and no code of the repository is ever run. The model's own chat template makes the conversation; the token after it is
the answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from vla_rl.config import LoraConfig, RewardModelConfig, UserError
from vla_rl.policies.huggingface.backbone import base_model, load_backbone, with_adapters
from vla_rl.policies.safetensors_files import MODEL_FILE, read_tensors, save_tensors
from vla_rl.rewards.process.model import (
    REMEDY,
    Actions,
    Images,
    PastSteps,
    RewardModelDescription,
    log_odds_in_parts,
    read_description,
    write_description,
)
from vla_rl.rewards.process.regression import (
    attach_head,
    load_head,
    progress_parts,
    save_head,
    without_head,
    written_action,
)
from vla_rl.runtime.devices import resolve_device
from vla_rl.runtime.extras import need

ADAPTER_FILE = "adapter_model.safetensors"
PART = 8
"""Turns scored at a time."""


class VlmProcessRewardModel:
    """`TrainableRewardModel` on a pretrained image-text model."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        description: RewardModelDescription,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        """`seed`: of a fresh head."""
        self.head = attach_head(model, _width(model), seed) if description.reads_past else None
        self.model = model.to(device).eval()
        self.processor = processor
        self.description = description
        self._device = device
        # the answer then stands in the last column of every row
        processor.tokenizer.padding_side = "left"
        answers = description.negative_answer, description.positive_answer
        # a head that gives a number needs no word for it
        self.answer_ids = [] if self.head else [self._answer_id(answer) for answer in answers]
        self._only_last = (
            "logits_to_keep" in inspect.signature(base_model(model).forward).parameters
        )

    @classmethod
    def create(
        cls, config: RewardModelConfig, action_shape: tuple[int, int] = (0, 0)
    ) -> VlmProcessRewardModel:
        """A reward model on the pretrained `config.backbone`, with fresh adapters unless all weights are trained.

        Raises UserError where the backbone is no image-text model, has no processor, or would need code of its own.
        """
        config = config.resolved()
        chunk, size = action_shape if config.reads_actions else (0, 0)
        description = RewardModelDescription(
            config.backbone, config.prompt, config.positive_answer, config.negative_answer,
            0, config.history, chunk, size,
            None if config.all_weights else config.lora or LoraConfig(), config.head,
        )  # fmt: skip
        device = resolve_device(config.device)
        model, processor = load_backbone(config.backbone, config.dtype, device)
        if config.all_weights:
            model = model.float().requires_grad_(True)  # what is trained is float32
        else:
            model = with_adapters(model, config.lora or LoraConfig(), config.seed)
        return cls(model, processor, description, device, config.seed)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def sees_actions(self) -> bool:
        return self.description.sees_actions

    def trained_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def train_mode(self, on: bool) -> None:
        """Dropout on or off."""
        self.model.train(on)

    def answer_log_probs(
        self, images: Images, instructions: Sequence[str], actions: Actions | None = None
    ) -> Float[Tensor, "B 2"]:
        """See `TrainableRewardModel.answer_log_probs`."""
        checked = self.description.check(images, instructions, actions)
        inputs = self.inputs(
            checked, [self.question(*pair) for pair in _pairs(instructions, actions)]
        )
        options = {"logits_to_keep": 1} if self._only_last else {}
        logits = self.model(**inputs, use_cache=False, **options).logits[:, -1]
        return torch.log_softmax(logits.float(), -1)[:, self.answer_ids]

    def progress_log_odds(
        self, images: Images, instructions: Sequence[str], past: PastSteps
    ) -> Float[Tensor, " B"]:
        """See `TrainableRewardModel.progress_log_odds`."""
        assert self.head is not None
        checked = self.description.check(images, instructions, None, past)
        starts = (self.description.history - 1 - past.count).tolist()
        messages = [
            progress_parts(text, list(actions[start:]))
            for text, actions, start in zip(instructions, past.actions, starts, strict=True)
        ]
        seen = [list(own[start:]) for own, start in zip(checked, starts, strict=True)]
        options = {"logits_to_keep": 1} if self._only_last else {}
        states = self.model(
            **self.conversations(seen, messages), use_cache=False, output_hidden_states=True, **options
        ).hidden_states[-1]  # fmt: skip
        return self.head(states[:, -1])

    def log_odds(
        self,
        images: Images,
        instructions: Sequence[str],
        actions: Actions | None = None,
        past: PastSteps | None = None,
    ) -> Float32[np.ndarray, " B"]:
        """See `ProcessRewardModel.log_odds`."""
        return log_odds_in_parts(self, images, instructions, actions, PART, threads=1, past=past)

    def question(self, instruction: str, action: Float32[np.ndarray, "C A"] | None = None) -> str:
        """What the user says after the image."""
        text = self.description.question(instruction)
        if action is None:
            return text
        return f"{text} The next action: {written_action(action)}"

    def inputs(
        self, images: UInt8[np.ndarray, "B F H W 3"], questions: Sequence[str]
    ) -> dict[str, Tensor]:
        """A question about each row of images, as `conversations`."""
        asked = [
            [*({"type": "image"} for _ in seen), {"type": "text", "text": question}]
            for seen, question in zip(images, questions, strict=True)
        ]
        return self.conversations([list(seen) for seen in images], asked)

    def conversations(
        self,
        images: Sequence[Sequence[UInt8[np.ndarray, "H W 3"]]],
        messages: Sequence[list[dict[str, str]]],
    ) -> dict[str, Tensor]:
        """Conversations of one user's message each, ready for the assistant's first token; padded on the left."""
        need("PIL", purpose="this reward model")
        from PIL import Image

        frames = [[Image.fromarray(image) for image in seen] for seen in images]
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
            )
            for parts in messages
        ]
        bos = self.processor.tokenizer.bos_token
        options = {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}
        batch = self.processor(
            text=texts, images=frames, padding=True, return_tensors="pt", **options
        )
        return {name: value.to(self._device) for name, value in batch.items()}

    def _answer_id(self, answer: str) -> int:
        ids = self.processor.tokenizer.encode(answer, add_special_tokens=False)
        if len(ids) != 1:
            raise UserError(
                f"the answer {answer!r} is {len(ids)} tokens for {self.description.backbone}, expected one: choose "
                "another word"
            )
        return int(ids[0])

    def save(self, folder: Path) -> None:
        """Write what was trained into `folder`, which is made; the backbone and its processor stay where they are."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.description.lora is not None:
            from peft import get_peft_model_state_dict

            save_tensors(get_peft_model_state_dict(self.model), folder / ADAPTER_FILE)
            self.model.peft_config["default"].save_pretrained(str(folder))
        else:
            # tied weights are stored once
            save_tensors(without_head(dict(self.model.named_parameters())), folder / MODEL_FILE)
        if self.head is not None:
            save_head(self.head, folder)
        write_description(folder, self.description)

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> VlmProcessRewardModel:
        """Read what `save` wrote, on the backbone it names. UserError where either is missing or they do not fit."""
        description = read_description(folder)
        place = resolve_device(device)
        model, processor = load_backbone(description.backbone, "auto", place)
        file = folder / (MODEL_FILE if description.lora is None else ADAPTER_FILE)
        tensors = read_tensors([file])
        if description.lora is None:
            model = model.float()
            # tied weights are stored once
            wanted = dict(model.named_parameters())
        else:
            from peft import get_peft_model_state_dict

            model = with_adapters(model, description.lora, seed=0)
            wanted = get_peft_model_state_dict(model)
        _require_same(tensors, wanted, file, description.backbone)
        if description.lora is None:
            model.load_state_dict(tensors, strict=False)
        else:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(model, tensors)
        loaded = cls(model, processor, description, place)
        if loaded.head is not None:
            load_head(loaded.head, folder)
        return loaded


def _width(model: Any) -> int:
    """Size of the language model's hidden states."""
    return int(base_model(model).config.get_text_config().hidden_size)


def _pairs(
    instructions: Sequence[str], actions: Actions | None
) -> list[tuple[str, Float32[np.ndarray, "C A"] | None]]:
    given = [None] * len(instructions) if actions is None else list(actions)
    return list(zip(instructions, given, strict=True))


def _require_same(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path, backbone: str
) -> None:
    """UserError unless the stored tensors are those that the backbone needs, finite and of its shapes."""
    missing, unknown = set(wanted) - set(found), set(found) - set(wanted)
    if missing or unknown:
        raise UserError(
            f"{file} does not belong to {backbone}: {len(missing)} weights are missing, {len(unknown)} unknown "
            f"({sorted(missing | unknown)[0]}, ...). Was another model put in that place?"
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{file}: {name} has shape {tuple(found[name].shape)}, the backbone needs {tuple(tensor.shape)}: it "
                "belongs to another model"
            )
        if not torch.isfinite(found[name]).all():
            raise UserError(f"{file}: {name} holds numbers that are not finite. {REMEDY}")
