"""Observations to model inputs: images to normalised pixels, instructions to prompt tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, UInt8
from tokenizers import Tokenizer
from torch import Tensor

from vla_rl.config.errors import UserError
from vla_rl.config.openvla import IMAGE_PREPROCESSING, ImagePreprocessing, ModelConfig
from vla_rl.config.policy import PolicyConfig
from vla_rl.policies.openvla.images.pipeline import prepare
from vla_rl.policies.openvla.tokenizer import token_ids
from vla_rl.policies.prompts import Prompts


@functools.lru_cache(maxsize=8)
def _normalisation(
    config: ModelConfig, device: torch.device
) -> tuple[Float32[Tensor, "6 3 1 1"], Float32[Tensor, " 6"]]:
    """Both normalisations, (x / 255 - mean) / std, as one 1x1 convolution from RGB to six channels."""
    with torch.inference_mode(False):
        mean = torch.tensor([*config.dino.mean, *config.siglip.mean], dtype=torch.float64)
        std = torch.tensor([*config.dino.std, *config.siglip.std], dtype=torch.float64)
        weight = torch.diag(1 / (255 * std)).view(6, 2, 3).sum(1).view(6, 3, 1, 1)
        return weight.float().to(device), (-mean / std).float().to(device)


def raw_pixels(
    images: UInt8[np.ndarray, "N H W 3"], device: torch.device
) -> Float32[Tensor, "N 3 H W"]:
    """Images as float32 0..255 on the device, channels last in memory: the only conversion of the bytes."""
    if not images.flags.writeable:  # torch warns that it could not protect it; nothing here writes
        images = images.copy()
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()


@functools.lru_cache(maxsize=8)
def _statistics(
    config: ModelConfig, device: torch.device
) -> tuple[Float32[Tensor, ""], Float32[Tensor, "2 3 1 1"], Float32[Tensor, "2 3 1 1"]]:
    """255, and mean and standard deviation of both towers."""
    with torch.inference_mode(False):
        towers = config.dino, config.siglip
        mean = torch.tensor([tower.mean for tower in towers], device=device)[..., None, None]
        std = torch.tensor([tower.std for tower in towers], device=device)[..., None, None]
        return torch.tensor(255.0, device=device), mean, std


def pixel_values(
    raw: Float32[Tensor, "N 3 H W"], config: ModelConfig
) -> Float32[Tensor, "N 6 H W"]:
    """DINOv2's normalisation in channels 0..2, SigLIP's in 3..5, as OpenVLA's processor stacks them.

    Equal to the processor's to the bit, but for channels-last pixels on a CPU: there one convolution does it, and
    differs in the last place (1e-6).
    """
    if raw.is_cuda or raw.is_contiguous():
        white, mean, std = _statistics(config, raw.device)
        out = raw.new_empty(len(raw), 2, *raw.shape[1:])
        # on a CPU one image at a time: it is still in the cache for the next operation
        for x, y in zip(
            *(t.split(len(raw) if raw.is_cuda else 1) for t in (raw, out)), strict=True
        ):
            torch.sub((x / white)[:, None], mean, out=y).div_(std)
        return out.flatten(1, 2)
    return F.conv2d(raw, *_normalisation(config, raw.device))


def with_protocol(model: ModelConfig, config: PolicyConfig) -> ModelConfig:
    """The checkpoint's description of its model, with what the policy's configuration asks for in its place."""
    if config.images != "checkpoint":
        # how frames become square is a matter of the camera, which the protocols leave open
        images = replace(IMAGE_PREPROCESSING[config.images], fit=model.images.fit)
        model = replace(model, images=images)
    if config.gripper != "checkpoint":
        model = replace(model, gripper=config.gripper)
    return model


def with_image_fit(
    model: ModelConfig, image_fit: Literal["stretch", "pad", "crop"] | None
) -> ModelConfig:
    """The model with what was done to the camera's frames that are not square: in play it is done to them again."""
    if image_fit is None:
        return model
    return replace(model, images=replace(model.images, fit=image_fit, resize="lanczos3"))


class Processor:
    """Prompts and images of one model. Prompt tokens are remembered per instruction."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._ids: dict[str, tuple[int, ...]] = {}

    def prompt_ids(self, instruction: str) -> tuple[int, ...]:
        """Token ids of the prompt for one instruction, lower-cased, BOS first.

        Raises UserError if an id reaches into the action tokens: such a tokenizer does not belong to the model.
        """
        known = self._ids.get(instruction)
        if known is not None:
            return known
        config = self.config
        prompt = config.prompt.format(instruction=instruction.lower())
        ids = token_ids(self.tokenizer, prompt)
        if not ids or ids[0] != config.language.bos_token:
            ids.insert(0, config.language.bos_token)
        if config.final_prompt_token is not None and ids[-1] != config.final_prompt_token:
            ids.append(config.final_prompt_token)
        first_action = config.language.text_vocab - config.action_bins
        if max(ids) >= first_action:
            raise UserError(
                f"The tokenizer gives id {max(ids)} for {instruction!r}, but ids from {first_action} on are action "
                f"tokens of model {config.name!r}: tokenizer.json belongs to another model, or there are more action "
                "tokens than its vocabulary has room for"
            )
        self._ids[instruction] = tuple(ids)
        return self._ids[instruction]

    def prompts(self, instructions: Sequence[str], device: torch.device) -> Prompts:
        """Tokenise a batch of instructions, padded on the right."""
        rows = [self.prompt_ids(text) for text in instructions]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        width = int(lengths.max())
        ids = np.full((len(rows), width), self.config.language.pad_token, dtype=np.int64)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = row
        return Prompts(torch.from_numpy(ids).to(device), lengths)

    def check_images(self, images: UInt8[np.ndarray, "N H W 3"]) -> None:
        """Raise UserError unless the images are as the model, or the stages before it, expect them."""
        size = self.config.image_size
        if self.config.images.resize != "none":
            if images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8:
                return
            raise UserError(
                f"Model {self.config.name!r} expects uint8 images of shape (N, height, width, 3), got "
                f"{images.dtype} {images.shape}"
            )
        if images.ndim != 4 or images.shape[1:] != (size, size, 3) or images.dtype != np.uint8:
            raise UserError(
                f"Model {self.config.name!r} expects uint8 images of shape (N, {size}, {size}, 3), got "
                f"{images.dtype} {images.shape}: set env.image_size to {size}"
            )

    def raw(
        self, images: UInt8[np.ndarray, "N H W 3"], device: torch.device
    ) -> Float32[Tensor, "N 3 S S"]:
        """Images in the model's size as values 0..255 on the device, after the stages of `config.images`."""
        self.check_images(images)
        if self.config.images == ImagePreprocessing():
            return raw_pixels(images, device)
        return prepare(images, self.config.images, self.config.image_size, device)

    def pixels(
        self, images: UInt8[np.ndarray, "N H W 3"], device: torch.device
    ) -> Float[Tensor, "N 6 S S"]:
        return pixel_values(self.raw(images, device), self.config)
