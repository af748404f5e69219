"""The process reward model: asked about an image, its next token is the answer.

    user       [image(s)] The task is open a drawer, is it completed? [proposed action]
    assistant  1

What is read is never text but log p(positive answer) - log p(negative answer) at the answer's position, over the whole
vocabulary; its sigmoid is the probability of the one against the other. With head regression a small network on the
last token's hidden state gives the log-odds of progress instead (`regression.py`). Two backbones: the project's own
tiny model class (`tiny`), and any image-text model of Hugging Face (`vlm`).

On disk a reward model is a folder. reward_model.json says what it was trained for, and the weights are safetensors. The
tiny one has its tokenizer beside them; the others take their processor from the backbone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from annotated_types import Ge, Le, MaxLen, MinLen
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from vla_rl.config import LoraConfig, RewardModelConfig, UserError
from vla_rl.config.reward import PROGRESS_PROMPT
from vla_rl.config.serialize import to_json
from vla_rl.runtime.external import fault, read_json
from vla_rl.runtime.files import write_json

REWARD_MODEL_FILE = "reward_model.json"
OLD_REWARD_MODEL_FILE = "judge.json"
"""Its name before; such reward models still load."""
FORMAT = 1
REMEDY = "Copy the folder again, or train the reward model again."
QUESTION = "a text with {instruction} in it and no other braces"
Images = UInt8[np.ndarray, "B H W 3"] | UInt8[np.ndarray, "B F H W 3"]
Actions = Float32[np.ndarray, "B C A"]


@dataclass(frozen=True)
class RewardModelDescription:
    """What a reward model was trained for. Asked anything else, it refuses."""

    backbone: Annotated[str, MinLen(1), MaxLen(1024)]
    """tiny, or the folder or hub id of the image-text model."""
    prompt: Annotated[str, MaxLen(10_000)]
    positive_answer: Annotated[str, MinLen(1), MaxLen(100)]
    negative_answer: Annotated[str, MinLen(1), MaxLen(100)]
    image_size: Annotated[int, Ge(0), Le(4096)]
    """Height and width of its images; 0: any."""
    history: Annotated[int, Ge(1), Le(64)] = 1
    """Images it sees, oldest first."""
    action_chunk: Annotated[int, Ge(0), Le(1024)] = 0
    """Actions of a turn that it sees; 0: none."""
    action_size: Annotated[int, Ge(0), Le(1024)] = 0
    lora: LoraConfig | None = None
    head: Literal["next-token", "regression"] = "next-token"
    """regression: it reads the actions of the steps so far, and its score is progress."""

    @property
    def sees_actions(self) -> bool:
        """Whether it is shown the turn's own actions, which are only proposed."""
        return self.action_chunk > 0 and not self.reads_past

    @property
    def reads_actions(self) -> bool:
        """Whether it is shown actions at all: those that are proposed, or those of the steps so far."""
        return self.action_chunk > 0

    @property
    def reads_past(self) -> bool:
        """Whether it is shown the actions between the images of its history."""
        return self.head == "regression"

    def question(self, instruction: str) -> str:
        """What it is asked about an image."""
        # not str.format, which would obey whatever else a foreign prompt holds in braces
        return self.prompt.replace("{instruction}", instruction)

    def check(
        self,
        images: Images,
        instructions: Sequence[str],
        actions: Actions | None,
        past: PastSteps | None = None,
    ) -> UInt8[np.ndarray, "B F H W 3"]:
        """The images with their history axis. Raises UserError for anything the reward model was not trained for."""
        if images.ndim == 4 and self.history == 1:
            images = images[:, None]
        count = len(instructions)
        if images.ndim != 5 or images.shape[1] != self.history or len(images) != count:
            wanted = f"{count}, {'' if self.history == 1 else f'{self.history}, '}height, width, 3"
            raise UserError(
                f"the reward model sees {self.history} image(s) a turn: expected shape ({wanted}) for {count} "
                f"instructions, got {tuple(images.shape)}"
            )
        size = self.image_size
        if size and images.shape[2:4] != (size, size):
            raise UserError(
                f"the reward model was trained on images of {size} x {size}, got {images.shape[2]} x "
                f"{images.shape[3]}: set the environment's or the dataset's image_size to {size}, or train a reward "
                "model for these"
            )
        self._check_actions(count, actions)
        self._check_past(count, past)
        return images

    def _check_past(self, count: int, past: PastSteps | None) -> None:
        if not self.reads_past:
            if past is not None:
                raise UserError(
                    "the reward model answers from what is seen now and was given the actions of the steps so far: "
                    "train one with head regression, or leave them out"
                )
            return
        wanted = (count, self.history - 1, self.action_chunk, self.action_size)
        if past is None or past.actions.shape != wanted or past.count.shape != (count,):
            got = "none" if past is None else f"actions of shape {past.actions.shape}"
            raise UserError(
                f"the reward model reads the {self.history - 1} step(s) before each turn, {self.action_chunk} "
                f"action(s) of size {self.action_size} each: expected actions of shape {wanted}, got {got}. It belongs "
                "to another history, action size or chunk"
            )
        if len(past.count) and not 0 <= past.count.min() <= past.count.max() < self.history:
            raise UserError(
                f"expected 0 to {self.history - 1} earlier steps at every turn, got {past.count.min()} to "
                f"{past.count.max()}"
            )
        if not np.isfinite(past.actions).all():
            raise UserError("the actions of the steps so far hold numbers that are not finite")

    def _check_actions(self, count: int, actions: Actions | None) -> None:
        shape = None if actions is None else tuple(actions.shape)
        wanted = (count, self.action_chunk, self.action_size) if self.sees_actions else None
        if shape == wanted:
            return
        if wanted is None:
            raise UserError(
                "the reward model was trained without actions and was given some: train one with sees_actions, or "
                "leave them out"
            )
        got = "none" if shape is None else f"some of shape {shape}"
        raise UserError(
            f"the reward model was trained to see {self.action_chunk} action(s) of size {self.action_size} a turn: "
            f"expected actions of shape {wanted}, got {got}. It belongs to another action size or chunk"
        )

    def require(self, config: RewardModelConfig, source: str) -> None:
        """Raise UserError unless a reward model for `config` is this one; both must ask the same question."""
        config = config.resolved()
        asked = {
            "head": config.head,
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


@dataclass(frozen=True)
class PastSteps:
    """The steps before each of B turns, P of them at most: those between the images of a history of P + 1."""

    actions: Float32[np.ndarray, "B P C A"]
    """Simulator units, oldest first; of steps before the episode's start 0."""
    count: Int64[np.ndarray, " B"]
    """How many there were: the last so many rows of `actions`."""

    def select(self, rows: slice | np.ndarray) -> PastSteps:
        """Of these turns."""
        return PastSteps(self.actions[rows], self.count[rows])


class ProcessRewardModel(Protocol):
    """Scores turns: what was seen (and is about to be done), under an instruction."""

    @property
    def description(self) -> RewardModelDescription: ...

    @property
    def sees_actions(self) -> bool: ...

    def log_odds(
        self,
        images: Images,
        instructions: Sequence[str],
        actions: Actions | None = None,
        past: PastSteps | None = None,
    ) -> Float32[np.ndarray, " B"]:
        """The log-odds of the positive answer at each turn: log p(positive) - log p(negative). Of progress with head
        regression: their sigmoid is progress, 0 to 1.

        images: (B, H, W, 3), or (B, F, H, W, 3) with F images each, oldest first (see `with_history`).
        actions: in the simulator's units, for a reward model that sees them. past: for one that reads the steps so far.
        Raises UserError where the reward model was trained for another size, history or action.
        """
        ...

    def save(self, folder: Path) -> None: ...


class TrainableRewardModel(ProcessRewardModel, Protocol):
    """A reward model that can be taught."""

    model: Any
    """Its network, an `nn.Module`."""

    @property
    def device(self) -> torch.device: ...

    def answer_log_probs(
        self, images: Images, instructions: Sequence[str], actions: Actions | None = None
    ) -> Float[Tensor, "B 2"]:
        """Log-probabilities of the negative (0) and the positive answer (1) among all tokens, with gradients."""
        ...

    def progress_log_odds(
        self, images: Images, instructions: Sequence[str], past: PastSteps
    ) -> Float[Tensor, " B"]:
        """Head regression: the log-odds of progress, with gradients."""
        ...

    def trained_parameters(self) -> list[torch.nn.Parameter]: ...

    def train_mode(self, on: bool) -> None:
        """Dropout and the like on or off."""
        ...


def probability(log_odds: Float32[np.ndarray, " B"]) -> Float32[np.ndarray, " B"]:
    """The sigmoid: p(positive) / (p(positive) + p(negative)), without overflow."""
    return (0.5 * (1.0 + np.tanh(0.5 * log_odds.astype(np.float64)))).astype(np.float32)


def history_rows(length: int, history: int, stride: int = 1) -> Int64[np.ndarray, "T F"]:
    """For every turn of an episode the numbers of the images it sees, oldest first; the first is repeated.

    stride: turns from one image to the next.
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
    past: PastSteps | None = None,
) -> Float32[np.ndarray, " B"]:
    """`ProcessRewardModel.log_odds` in parts of so many turns, several at a time."""
    starts = range(0, len(instructions), part)

    def of_part(start: int) -> Float32[np.ndarray, " b"]:
        rows = slice(start, start + part)
        given = None if actions is None else actions[rows]
        with torch.inference_mode():  # per thread
            if past is not None:
                odds = reward_model.progress_log_odds(
                    images[rows], instructions[rows], past.select(rows)
                )
                return odds.float().cpu().numpy()
            log_probs = reward_model.answer_log_probs(images[rows], instructions[rows], given)
            return (log_probs[:, 1] - log_probs[:, 0]).float().cpu().numpy()

    reward_model.description.check(images, instructions, actions, past)
    if not instructions:
        return np.zeros(0, np.float32)
    if threads <= 1 or len(starts) == 1:
        parts: Iterable[np.ndarray] = [of_part(start) for start in starts]
        return np.concatenate(list(parts))
    with ThreadPoolExecutor(min(threads, len(starts)), "reward-model") as pool:
        return np.concatenate(list(pool.map(of_part, starts)))


def write_description(folder: Path, description: RewardModelDescription) -> None:
    """reward_model.json."""
    write_json(folder / REWARD_MODEL_FILE, {"format": FORMAT, **to_json(description)})


def description_file(folder: Path) -> Path | None:
    """The file that makes `folder` a reward model's, under its present or its former name."""
    names = (REWARD_MODEL_FILE, OLD_REWARD_MODEL_FILE)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def is_question(prompt: str) -> bool:
    """Whether a prompt is one to fill in: other braces would be obeyed by whoever formats it."""
    return "{instruction}" in prompt and not set("{}") & set(prompt.replace("{instruction}", ""))


@dataclass(frozen=True)
class _Stored:
    format: int


def read_description(folder: Path) -> RewardModelDescription:
    """Raises UserError if the folder is no reward model's, or what it says about itself is damaged."""
    path = description_file(folder)
    if path is None:
        what = (
            "it does not exist" if not folder.exists() else f"there is no {REWARD_MODEL_FILE} in it"
        )
        raise UserError(
            f"{folder} is no process reward model, {what}: train one with `vla-rl reward train`"
        )
    version = read_json(path, _Stored, inside=folder, remedy=REMEDY).format
    if version != FORMAT:
        raise fault(path, "format", str(FORMAT), version, "Train the reward model again.")
    found = read_json(path, RewardModelDescription, inside=folder, remedy=REMEDY)
    if not found.backbone.isprintable():
        raise fault(path, "backbone", "tiny, a folder or a hub id", found.backbone, REMEDY)
    if not is_question(found.prompt):
        raise fault(path, "prompt", QUESTION, found.prompt, REMEDY)
    if (found.action_chunk > 0) != (found.action_size > 0):
        expected = "0 exactly if action_chunk is 0"
        raise fault(path, "action_size", expected, found.action_size, REMEDY)
    if found.reads_past:
        if found.history < 2 or not found.action_chunk:
            expected = "2 or more, and action_chunk 1 or more, for head regression"
            raise fault(path, "history", expected, found.history, REMEDY)
        if found.prompt != PROGRESS_PROMPT:
            raise fault(path, "prompt", repr(PROGRESS_PROMPT), found.prompt, REMEDY)
    return found
