"""The process reward model: asked about a image, its next token is the answer.

    user       [image(s)] The task is open a drawer, is it completed? [proposed action]
    assistant  1

What is read is never text but log p(positive answer) - log p(negative answer) at the answer's position, over the whole
vocabulary; its sigmoid is the probability of the one against the other. Two backbones: the project's own tiny model
class (`tiny`), and any image-text model of Hugging Face (`vlm`).

A reward model on disk is a folder: judge.json, what it was trained for; weights as safetensors; the tokenizer or
processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from vla_rl.config import ConfigError, LoraConfig, RewardModelConfig, UserError
from vla_rl.config.serialize import from_json, to_json
from vla_rl.runtime.files import read_json, write_json

REWARD_MODEL_FILE = "judge.json"
FORMAT = 1
Images = UInt8[np.ndarray, "B H W 3"] | UInt8[np.ndarray, "B F H W 3"]
Actions = Float32[np.ndarray, "B C A"]


@dataclass(frozen=True)
class RewardModelDescription:
    """What a reward model was trained for. Asked anything else, it refuses."""

    backbone: str
    """tiny, or the folder or hub id of the image-text model."""
    prompt: str
    positive_answer: str
    negative_answer: str
    image_size: int
    """Height and width of its images; 0: any."""
    history: int = 1
    """Images it sees, oldest first."""
    action_chunk: int = 0
    """Actions it sees; 0: none."""
    action_size: int = 0
    lora: LoraConfig | None = None

    @property
    def sees_actions(self) -> bool:
        return self.action_chunk > 0

    def check(
        self, images: Images, instructions: Sequence[str], actions: Actions | None
    ) -> UInt8[np.ndarray, "B F H W 3"]:
        """The images with their history axis. Raises UserError for anything the reward model was not trained for."""
        if images.ndim == 4 and self.history == 1:
            images = images[:, None]
        count = len(instructions)
        if images.ndim != 5 or images.shape[1] != self.history or len(images) != count:
            wanted = f"{count}, {'' if self.history == 1 else f'{self.history}, '}height, width, 3"
            raise UserError(
                f"the reward model sees {self.history} image(s) a decision: expected shape ({wanted}) for {count} "
                f"instructions, got {tuple(images.shape)}"
            )
        size = self.image_size
        if size and images.shape[2:4] != (size, size):
            raise UserError(
                f"the reward model was trained on images of {size} x {size}, got {images.shape[2]} x "
                f"{images.shape[3]}: set "
                f"the environment's or the dataset's image_size to {size}, or train a reward model for these"
            )
        self._check_actions(count, actions)
        return images

    def _check_actions(self, count: int, actions: Actions | None) -> None:
        shape = None if actions is None else tuple(actions.shape)
        wanted = (count, self.action_chunk, self.action_size) if self.sees_actions else None
        if shape == wanted:
            return
        if wanted is None:
            raise UserError(
                "the reward model was trained without actions and was given some: train one with sees_actions, or "
                "leave "
                "them out"
            )
        got = "none" if shape is None else f"some of shape {shape}"
        raise UserError(
            f"the reward model was trained to see {self.action_chunk} action(s) of size {self.action_size} a decision: "
            f"expected actions of shape {wanted}, got {got}. It belongs to another action size or chunk"
        )

    def require(self, config: RewardModelConfig, source: str) -> None:
        """Raise UserError unless a reward model for `config` is this one; both must ask the same question."""
        asked = {
            "prompt": config.prompt,
            "positive_answer": config.positive_answer,
            "negative_answer": config.negative_answer,
            "history": config.history,
            "sees_actions": config.sees_actions,
        }
        for name, wanted in asked.items():
            own = getattr(self, name)
            if own != wanted:
                raise UserError(
                    f"the reward model in {source} was trained with {name} {own!r}, asked for is {wanted!r}: set "
                    f"reward.{name} to its own, or train another reward model"
                )


class ProcessRewardModel(Protocol):
    """Scores decisions: what was seen (and is about to be done), under an instruction."""

    @property
    def description(self) -> RewardModelDescription: ...

    @property
    def sees_actions(self) -> bool: ...

    def log_odds(
        self, images: Images, instructions: Sequence[str], actions: Actions | None = None
    ) -> Float32[np.ndarray, " B"]:
        """The log-odds of the positive answer at each decision: log p(positive) - log p(negative).

        images: (B, H, W, 3), or (B, F, H, W, 3) with F images each, oldest first (see `with_history`).
        actions: in the simulator's units, for a reward model that sees them. Raises UserError where the reward model
        was trained for
        another size, history or action.
        """
        ...

    def save(self, folder: Path) -> None: ...


class TrainableRewardModel(ProcessRewardModel, Protocol):
    """A reward model that can be taught."""

    @property
    def device(self) -> torch.device: ...

    def answer_log_probs(
        self, images: Images, instructions: Sequence[str], actions: Actions | None = None
    ) -> Float[Tensor, "B 2"]:
        """Log-probabilities of the negative (0) and the positive answer (1) among all tokens, with gradients."""
        ...

    def trained_parameters(self) -> list[torch.nn.Parameter]: ...

    def train_mode(self, on: bool) -> None:
        """Dropout and the like on or off."""
        ...


def probability(log_odds: Float32[np.ndarray, " B"]) -> Float32[np.ndarray, " B"]:
    """The sigmoid: p(positive) / (p(positive) + p(negative)), without overflow."""
    return (0.5 * (1.0 + np.tanh(0.5 * log_odds.astype(np.float64)))).astype(np.float32)


def history_rows(length: int, history: int, stride: int = 1) -> Int64[np.ndarray, "T F"]:
    """For every decision of an episode the numbers of the images it sees, oldest first; the first is repeated.

    stride: decisions from one image to the next.
    """
    back = stride * np.arange(history - 1, -1, -1)
    return np.maximum(np.arange(length)[:, None] - back, 0)


def with_history(
    images: UInt8[np.ndarray, "T H W 3"], history: int, stride: int = 1
) -> UInt8[np.ndarray, "T F H W 3"]:
    """The images of an episode as a reward model with a history sees them, see `history_rows`."""
    return images[history_rows(len(images), history, stride)]


def log_odds_in_parts(
    reward_model: TrainableRewardModel,
    images: Images,
    instructions: Sequence[str],
    actions: Actions | None,
    part: int,
    threads: int,
) -> Float32[np.ndarray, " B"]:
    """`ProcessRewardModel.log_odds` in parts of so many decisions, several at a time."""
    starts = range(0, len(instructions), part)

    def of_part(start: int) -> Float32[np.ndarray, " b"]:
        rows = slice(start, start + part)
        given = None if actions is None else actions[rows]
        with torch.inference_mode():  # per thread
            log_probs = reward_model.answer_log_probs(images[rows], instructions[rows], given)
            return (log_probs[:, 1] - log_probs[:, 0]).float().cpu().numpy()

    reward_model.description.check(images, instructions, actions)
    if not instructions:
        return np.zeros(0, np.float32)
    if threads <= 1 or len(starts) == 1:
        parts: Iterable[np.ndarray] = [of_part(start) for start in starts]
        return np.concatenate(list(parts))
    with ThreadPoolExecutor(min(threads, len(starts)), "judge") as pool:
        return np.concatenate(list(pool.map(of_part, starts)))


def write_description(folder: Path, description: RewardModelDescription) -> None:
    """judge.json."""
    write_json(folder / REWARD_MODEL_FILE, {"format": FORMAT, **to_json(description)})


def read_description(folder: Path) -> RewardModelDescription:
    """Raises UserError if the folder is no reward model's, or judge.json is damaged."""
    path = folder / REWARD_MODEL_FILE
    if not path.is_file():
        what = (
            "it does not exist" if not folder.exists() else f"there is no {REWARD_MODEL_FILE} in it"
        )
        raise UserError(
            f"{folder} is no process reward model, {what}: train one with `vla-rl reward train`"
        )
    stored = read_json(path)
    version = stored.pop("format", None)
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version}, expected {FORMAT}: train the reward model again"
        )
    try:
        return from_json(RewardModelDescription, stored)
    except ConfigError as error:
        raise UserError(f"{path} is damaged: {error}") from None
