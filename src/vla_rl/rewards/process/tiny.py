"""The reward model on the project's own tiny model class, trained from scratch on a CPU.

    column   0    1 .. 4 (F-1)        .. + P           then
    content  BOS  earlier images    the image now  the question, then the proposed actions' tokens

and the hidden state of the last column predicts the answer, a text token like any other. Earlier images are averaged
down to four tokens each: what moved is to be seen, not what it looked like.

With head regression each earlier image is followed by the tokens of the action that was taken then, and a small network
on the last column's hidden state gives progress (`regression.py`). Steps before the episode's start are padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from tokenizers import Tokenizer
from torch import Tensor, nn

from vla_rl.config import ConfigError, ModelConfig, RewardModelConfig, UserError, tiny_model
from vla_rl.config.serialize import from_json, to_json
from vla_rl.policies import OpenVLA, Processor, build_tiny_tokenizer
from vla_rl.policies.action_tokens import ActionTokenizer
from vla_rl.policies.openvla.checkpoint import TOKENIZER_FILE, load_model, weights_of
from vla_rl.policies.openvla.language import Columns
from vla_rl.policies.openvla.model import initialise
from vla_rl.policies.openvla.processing import pixel_values, raw_pixels
from vla_rl.policies.openvla.tokenizer import load_tokenizer
from vla_rl.policies.prompts import Prompts
from vla_rl.policies.safetensors_files import MODEL_FILE, save_tensors
from vla_rl.policies.shapes import shapes_alone
from vla_rl.rewards.process.model import (
    QUESTION,
    REMEDY,
    Actions,
    Images,
    PastSteps,
    RewardModelDescription,
    is_question,
    log_odds_in_parts,
    read_description,
    write_description,
)
from vla_rl.rewards.process.regression import (
    attach_head,
    load_head,
    save_head,
    without_head,
)
from vla_rl.runtime.cpus import available_cpus
from vla_rl.runtime.devices import resolve_device
from vla_rl.runtime.external import fault, read_json
from vla_rl.runtime.files import write_json

MODEL_CONFIG_FILE = "model.json"
TEXT_VOCAB = 1024
MAX_POSITIONS = 512
"""Room for an image, earlier ones and words."""
PART = 64
"""Turns a thread scores at a time."""
EARLIER_SIDE = 2
"""An earlier image becomes so many by so many tokens."""


class TinyProcessRewardModel:
    """`TrainableRewardModel` on an `OpenVLA` of the tiny size."""

    def __init__(
        self,
        model: OpenVLA,
        tokenizer: Tokenizer,
        description: RewardModelDescription,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        """`seed`: of a fresh head."""
        width = model.config.language.hidden
        self.head = attach_head(model, width, seed) if description.reads_past else None
        self.model = model.to(device).eval()
        self.description = description
        self._device = device
        self.processor = Processor(model.config, tokenizer)
        self.action_tokenizer = ActionTokenizer(
            model.config.action_bins, model.config.bin_style, model.config.language.text_vocab
        )
        answers = description.negative_answer, description.positive_answer
        texts = model.config.language.text_vocab
        self.answer_ids = [answer_id(tokenizer, answer, texts) for answer in answers]

    @classmethod
    def create(
        cls,
        config: RewardModelConfig,
        instructions: Sequence[str],
        image_size: int,
        action_shape: tuple[int, int] = (0, 0),
    ) -> TinyProcessRewardModel:
        """A randomly initialised reward model; the same config and instructions always make the same one.

        instructions: Their words get tokens of their own; other words are spelled in bytes. action_shape: (C, A) of the
        actions that it sees, if the config says that it sees any.
        """
        config = config.resolved()
        chunk, size = action_shape if config.reads_actions else (0, 0)
        model = reward_model_model(config, image_size, chunk * size)
        template = config.prompt.lower().replace("{instruction}", " ")
        answers = [config.negative_answer, config.positive_answer]
        tokenizer = build_tiny_tokenizer([*instructions, template, *answers], model)
        description = RewardModelDescription(
            "tiny", config.prompt, config.positive_answer, config.negative_answer,
            image_size, config.history, chunk, size, None, config.head,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = OpenVLA(model)
            initialise(network)
        network.freeze_unused()
        return cls(network, tokenizer, description, resolve_device(config.device), config.seed)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def sees_actions(self) -> bool:
        return self.description.sees_actions

    def trained_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def train_mode(self, on: bool) -> None:
        """The tiny model has no dropout."""

    def answer_log_probs(
        self, images: Images, instructions: Sequence[str], actions: Actions | None = None
    ) -> Float[Tensor, "B 2"]:
        """See `TrainableRewardModel.answer_log_probs`."""
        patches = self._embed(self.description.check(images, instructions, actions))
        question = self.processor.prompts(instructions, self._device)
        prompts = question if actions is None else _followed_by(question, self._action_ids(actions))
        return self._answers(self._hidden(patches, prompts, prompts.lengths - 1, 1)[:, 0])

    def joint_log_probs(
        self,
        images: Images,
        instructions: Sequence[str],
        actions: Actions,
        answers: Int64[Tensor, " B"],
    ) -> tuple[Float[Tensor, "B 2"], Float[Tensor, " B"]]:
        """The answer's log-probabilities, and the mean log-probability of the tokens of the action that was taken.

        Both come from one pass over one sequence. A reward model that sees actions reads them before its answer, any
        other writes them after it. `answers`: 0 negative, 1 positive.
        """
        sees = self.sees_actions
        patches = self._embed(
            self.description.check(images, instructions, actions if sees else None)
        )
        question = self.processor.prompts(instructions, self._device)
        given = self._action_ids(actions)
        said = torch.tensor(self.answer_ids, device=self._device)[answers.to(self._device)][:, None]
        rest = given if sees else torch.cat([said, given[:, :-1]], 1)
        count = given.shape[1] + 1
        hidden = self._hidden(patches, _followed_by(question, rest), question.lengths - 1, count)
        answer, action = (hidden[:, -1], hidden[:, :-1]) if sees else (hidden[:, 0], hidden[:, 1:])
        return self._answers(answer), self._taken(action, given)

    def progress_log_odds(
        self, images: Images, instructions: Sequence[str], past: PastSteps
    ) -> Float[Tensor, " B"]:
        """See `TrainableRewardModel.progress_log_odds`."""
        assert self.head is not None
        before = self._embed_steps(self.description.check(images, instructions, None, past), past)
        question = self.processor.prompts(instructions, self._device)
        return self.head(self._hidden(before, question, question.lengths - 1, 1)[:, 0])

    def joint_progress(
        self, images: Images, instructions: Sequence[str], past: PastSteps, actions: Actions
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """The log-odds of progress, and the mean log-probability of the tokens of the action that was taken next.

        Both come from one pass: the column that gives progress also predicts the action's first token.
        """
        assert self.head is not None
        before = self._embed_steps(self.description.check(images, instructions, None, past), past)
        question = self.processor.prompts(instructions, self._device)
        given = self._action_ids(actions)
        prompts = _followed_by(question, given[:, :-1])
        hidden = self._hidden(before, prompts, question.lengths - 1, given.shape[1])
        return self.head(hidden[:, 0]), self._taken(hidden, given)

    def _taken(
        self, hidden: Float[Tensor, "B K D"], given: Int64[Tensor, "B K"]
    ) -> Float[Tensor, " B"]:
        """Mean log-probability of these action tokens in the columns that predict them."""
        bins = self.model.config.language.text_vocab - 1 - given
        log_probs = torch.log_softmax(self.model.action_logits(hidden), -1)
        return log_probs.gather(-1, bins[..., None])[..., 0].mean(1)

    def _hidden(
        self, patches: Tensor, prompts: Prompts, first: Int64[np.ndarray, " B"], count: int
    ) -> Float[Tensor, "B count D"]:
        """Hidden states of `count` text columns from column `first` (of the text) on."""
        language = self.model.language_model.model
        text = language.embed_tokens(prompts.ids)
        x = torch.cat([text[:, :1], patches, text[:, 1:]], 1)
        columns = patches.shape[1] + first[:, None] + np.arange(count)
        asked = Columns(0, count, torch.from_numpy(columns).to(self._device))
        return language(x, Columns(0, x.shape[1]), asked)

    def _answers(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B 2"]:
        texts = self.model.config.language.text_vocab
        logits = self.model.language_model.logits(hidden, 0, texts)
        return torch.log_softmax(logits, -1)[:, self.answer_ids]

    def _action_ids(self, actions: Actions) -> Int64[Tensor, "B K"]:
        bins = self.action_tokenizer.encode(actions.reshape(len(actions), -1))
        return self.model.vocabulary_ids(torch.from_numpy(bins)).to(self._device)

    def log_odds(
        self,
        images: Images,
        instructions: Sequence[str],
        actions: Actions | None = None,
        past: PastSteps | None = None,
    ) -> np.ndarray:
        """See `ProcessRewardModel.log_odds`."""
        threads = available_cpus() if self._device.type == "cpu" else 1
        return log_odds_in_parts(self, images, instructions, actions, PART, threads, past)

    def _embed(self, images: UInt8[np.ndarray, "B F H W 3"]) -> Float[Tensor, "B S D"]:
        """Tokens of all images, oldest first."""
        small, now = self._embed_apart(images)
        return torch.cat([small.flatten(1, 2), now], 1)

    def _embed_apart(
        self, images: UInt8[np.ndarray, "B F H W 3"]
    ) -> tuple[Float[Tensor, "B P T D"], Float[Tensor, "B S D"]]:
        """Tokens of the earlier images, a few for each, and of the last one."""
        batch, history = images.shape[:2]
        raw = raw_pixels(images.reshape(-1, *images.shape[2:]), self._device)
        features = self.model.embed_images(pixel_values(raw, self.model.config))
        every = features.view(batch, history, *features.shape[1:])
        side, width = round(features.shape[1] ** 0.5), features.shape[-1]
        grid = every[:, :-1].reshape(-1, side, side, width).permute(0, 3, 1, 2)
        small = F.adaptive_avg_pool2d(grid, EARLIER_SIDE).flatten(2).transpose(1, 2)
        return small.reshape(batch, history - 1, EARLIER_SIDE**2, width), every[:, -1]

    def _embed_steps(
        self, images: UInt8[np.ndarray, "B F H W 3"], past: PastSteps
    ) -> Float[Tensor, "B S D"]:
        """Each earlier image and the action that was taken then, padding where there was none, and the image now."""
        small, now = self._embed_apart(images)
        batch, steps = small.shape[:2]
        taken = past.actions.reshape(-1, *past.actions.shape[2:])
        tokens = self._action_ids(taken).view(batch, steps, -1)
        embed = self.model.language_model.model.embed_tokens
        block = torch.cat([small, embed(tokens)], 2)
        absent = torch.from_numpy(np.arange(steps) < steps - past.count[:, None]).to(self._device)
        pad = torch.tensor(self.model.config.language.pad_token, device=self._device)
        block = torch.where(absent[..., None, None], embed(pad), block)
        return torch.cat([block.flatten(1, 2), now], 1)

    def save(self, folder: Path) -> None:
        """Write the reward model into `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        self.processor.tokenizer.save(str(folder / TOKENIZER_FILE))
        write_json(folder / MODEL_CONFIG_FILE, to_json(self.model.config))
        save_tensors(without_head(self.model.state_dict()), folder / MODEL_FILE)
        if self.head is not None:
            save_head(self.head, folder)
        write_description(folder, self.description)

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> TinyProcessRewardModel:
        """Read what `save` wrote. Raises UserError for missing, damaged or ill-fitting files."""
        description = read_description(folder)
        config = _read_model_config(folder, description)
        model = load_model(folder, config)
        tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
        loaded = cls(model, tokenizer, description, resolve_device(device))
        if loaded.head is not None:
            load_head(loaded.head, folder)
        return loaded


def _read_model_config(folder: Path, description: RewardModelDescription) -> ModelConfig:
    """model.json. UserError where it is damaged, or larger than the weights beside it."""
    path = folder / MODEL_CONFIG_FILE
    try:
        config = from_json(ModelConfig, read_json(path, inside=folder, remedy=REMEDY))
        layers = config.language.layers + config.dino.depth + config.siglip.depth
        # before a model of that many layers is built
        if layers > len(weights_of(folder)):
            raise fault(path, "", "no more layers than the weights have", layers, REMEDY)
        with shapes_alone():
            OpenVLA(config)
    except ConfigError as error:
        raise UserError(f"{path} is damaged: {error}. {REMEDY}") from error
    except (
        ArithmeticError,
        AssertionError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"{path} describes no model that can be built ({error}). {REMEDY}"
        ) from error
    if not is_question(config.prompt):
        raise fault(path, "prompt", QUESTION, config.prompt, REMEDY)
    if config.image_size != description.image_size:
        expected = f"{description.image_size}, as the reward model says of itself"
        raise fault(path, "image_size", expected, config.image_size, REMEDY)
    return config


def _followed_by(prompts: Prompts, ids: Int64[Tensor, "B K"]) -> Prompts:
    """Each prompt with these tokens directly after it, padding last."""
    count = ids.shape[1]
    longer = F.pad(prompts.ids, (0, count), value=0)
    places = torch.from_numpy(prompts.lengths[:, None] + np.arange(count)).to(ids.device)
    return Prompts(longer.scatter(1, places, ids), prompts.lengths + count)


def reward_model_model(
    config: RewardModelConfig, image_size: int, action_tokens: int = 0
) -> ModelConfig:
    """The tiny policy's size, with more room for words: a reward model may be asked about any suite's instructions.

    action_tokens: of one turn, if it reads any. A long history of them gets the room that it needs.
    """
    small = tiny_model(image_size, prompt=config.prompt.lower())
    steps = (config.history - 1) * (EARLIER_SIDE**2 + action_tokens) if config.regresses else 0
    language = replace(
        small.language,
        text_vocab=TEXT_VOCAB, padded_vocab=TEXT_VOCAB + 64, pad_token=TEXT_VOCAB,
        max_positions=MAX_POSITIONS + steps,
    )  # fmt: skip
    return replace(small, name="tiny-reward-model", language=language)


def answer_id(tokenizer: Tokenizer, answer: str, texts: int) -> int:
    """The token of an answer, one of the first `texts`. Raises UserError if it takes several: one position is read."""
    ids = tokenizer.encode(answer.lower(), add_special_tokens=False).ids
    if len(ids) != 1:
        raise UserError(
            f"the answer {answer!r} is {len(ids)} tokens for this model, expected one: choose a single word"
        )
    if ids[0] >= texts:
        raise UserError(
            f"the answer {answer!r} is token {ids[0]} of the tokenizer, and the model has {texts}: the tokenizer "
            "belongs to another model"
        )
    return ids[0]
