"""Teaching a reward model: next-token cross-entropy on its answer.

    L = - 1 / B sum_b log p(answer_b | images_b, question_b)

over the whole vocabulary, at the answer's position and nowhere else. With head regression the target is progress y:

    L = - 1 / B sum_b y_b log p_b + (1 - y_b) log (1 - p_b)

AdamW, linear warm-up, cosine decay, gradient
clipping; on a CPU a batch is split into single-threaded shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from vla_rl.algorithms.gradients import ThreadedGradients
from vla_rl.algorithms.learner import finite
from vla_rl.algorithms.sft import schedule, shift_images
from vla_rl.config import RewardModelConfig, UserError
from vla_rl.rewards.process.model import PastSteps, TrainableRewardModel
from vla_rl.rewards.process.tiny import TinyProcessRewardModel


@dataclass(frozen=True)
class RewardModelBatch:
    """B turns and the answer that is right for each."""

    images: UInt8[np.ndarray, "B F H W 3"]
    instructions: list[str]
    actions: Float32[np.ndarray, "B C A"]  # what was done
    positive: Bool[np.ndarray, " B"]
    matched: Bool[np.ndarray, " B"]  # under its own instruction
    progress: Float32[np.ndarray, " B"] | None = None  # for head regression: what is right, 0..1
    past: PastSteps | None = None  # and the steps so far


class RewardModelLearner:
    """One optimizer over a reward model's trained weights, and its schedule."""

    def __init__(
        self, reward_model: TrainableRewardModel, config: RewardModelConfig, total_steps: int
    ) -> None:
        self.reward_model, self.config, self.total_steps = reward_model, config, total_steps
        self.parameters = reward_model.trained_parameters()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        # a large model's operations are long enough to be shared by torch's own threads
        shares = config.threads if reward_model.description.backbone == "tiny" else 1
        self.gradients = ThreadedGradients(shares, config.micro_batch, reward_model.device)
        self.steps = 0

    def update(self, batch: RewardModelBatch) -> dict[str, float]:
        """One optimizer step; returns loss (nats), accuracy, gradient norm and learning rate.

        Raises UserError where the loss, a gradient, or a weight after the step is not finite. After the last step the
        loss on some of the batch must be finite, too: no other step would find out.
        """
        rate = self.config.learning_rate * schedule(
            self.steps, self.config.warmup_steps, self.total_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.reward_model.train_mode(True)
        numbers = self.gradients.backward(
            lambda rows: self._loss(batch, rows),
            torch.arange(len(batch.positive)).tensor_split(self.gradients.threads),
            self.parameters,
        )
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
        if not math.isfinite(norm) or not math.isfinite(numbers["loss"]):
            raise self._diverged(f"loss {numbers['loss']:g}, gradient norm {norm:g}")
        self.optimizer.step()
        if not finite(self.parameters):
            raise self._diverged("a weight is not finite after the step")
        self.reward_model.train_mode(False)
        self.steps += 1
        if self.steps >= self.total_steps:
            self._require_finite_answers(batch)
        return numbers | {"grad_norm": norm, "learning_rate": rate}

    def _require_finite_answers(self, batch: RewardModelBatch) -> None:
        some = torch.arange(len(batch.positive))[: self.config.micro_batch or None]
        with torch.no_grad():
            _, numbers = self._loss(batch, some)
        if not math.isfinite(numbers["loss"]):
            raise self._diverged(f"loss {numbers['loss']:g} after the last step")

    def _diverged(self, how: str) -> UserError:
        return UserError(
            f"training the reward model diverged: {how} at step {self.steps} of {self.total_steps}; nothing of it is "
            f"saved. Lower reward.learning_rate (now {self.config.learning_rate:g}) or lengthen reward.warmup_steps."
        )

    def _loss(
        self, batch: RewardModelBatch, rows: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        if self.reward_model.description.reads_past:
            return self._progress_loss(batch, rows.numpy())
        at = rows.numpy()
        images, actions = batch.images[at], batch.actions[at]
        instructions = [batch.instructions[i] for i in at.tolist()]
        answers = torch.from_numpy(batch.positive[at])
        numbers: dict[str, float] = {}
        extra: Tensor | float = 0.0
        if isinstance(self.reward_model, TinyProcessRewardModel) and self.config.action_coef:
            log_probs, taken = self.reward_model.joint_log_probs(
                images, instructions, actions, answers.long()
            )
            matched = torch.from_numpy(batch.matched[at]).to(taken)
            action_loss = -(taken * matched).mean()
            extra = self.config.action_coef * action_loss
            numbers["action_loss"] = action_loss.item()
        else:
            seen = actions if self.reward_model.sees_actions else None
            log_probs = self.reward_model.answer_log_probs(images, instructions, seen)
        answers = answers.to(log_probs.device)
        loss = -log_probs.gather(1, answers.long()[:, None]).mean()
        right = (log_probs[:, 1] > log_probs[:, 0]) == answers
        numbers |= {"loss": loss.item(), "accuracy": right.float().mean().item()}
        return loss + extra, numbers

    def _progress_loss(
        self, batch: RewardModelBatch, at: Int64[np.ndarray, " b"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        assert batch.progress is not None
        assert batch.past is not None
        images, past = batch.images[at], batch.past.select(at)
        instructions = [batch.instructions[i] for i in at.tolist()]
        numbers: dict[str, float] = {}
        extra: Tensor | float = 0.0
        if isinstance(self.reward_model, TinyProcessRewardModel) and self.config.action_coef:
            odds, taken = self.reward_model.joint_progress(
                images, instructions, past, batch.actions[at]
            )
            action_loss = -(taken * torch.from_numpy(batch.matched[at]).to(taken)).mean()
            extra = self.config.action_coef * action_loss
            numbers["action_loss"] = action_loss.item()
        else:
            odds = self.reward_model.progress_log_odds(images, instructions, past)
        progress = torch.from_numpy(batch.progress[at]).to(odds)
        loss = F.binary_cross_entropy_with_logits(odds, progress)
        error = (torch.sigmoid(odds.detach()) - progress).abs().mean()
        numbers |= {"loss": loss.item(), "absolute_error": error.item()}
        return loss + extra, numbers

    def close(self) -> None:
        self.gradients.close()


def shift_sequences(
    images: UInt8[np.ndarray, "B F H W 3"], max_shift: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "B F H W 3"]:
    """Shift each example by its own random whole number of pixels, all of its images alike."""
    if max_shift == 0:
        return images
    batch, history, height, width, _ = images.shape
    shifts = rng.integers(-max_shift, max_shift + 1, size=(batch, 2))
    flat = images.reshape(-1, height, width, 3)
    return shift_images(flat, np.repeat(shifts, history, axis=0), max_shift).reshape(images.shape)
