"""Supervised fine-tuning: cross-entropy on the expert's action tokens.

    L = - 1 / (B K) sum_b sum_k log pi(token_bk | image_b, instruction_b, token_b<k)

the behaviour cloning that OpenVLA is trained with (arXiv:2406.09246, section 3.2), on the K tokens of a turn and
nothing else: no prompt or padding token is counted. Where turns have an end token, that is one of them, and the mean is
over the tokens up to it (arXiv:2501.09747). AdamW, linear warm-up, cosine decay, gradient clipping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from vla_rl.algorithms.learner import finite
from vla_rl.config import SFTConfig, UserError
from vla_rl.policies.policy import Policy, decided
from vla_rl.types import Observation

FINAL_LEARNING_RATE = 0.05
"""The cosine ends at this fraction of the learning rate."""


class SFT:
    """The learner: one optimizer over the policy's parameters (never the critic's) and its schedule."""

    def __init__(self, policy: Policy, config: SFTConfig, total_steps: int) -> None:
        self.policy, self.config, self.total_steps = policy, config, total_steps
        self.parameters = policy.policy_parameters()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        adapters = config.policy.lora
        self._drops_inputs = adapters is not None and adapters.dropout > 0
        self.steps = 0

    def update(self, observation: Observation, tokens: Int64[Tensor, "B K"]) -> dict[str, float]:
        """One optimizer step on one minibatch; returns loss (nats a token), gradient norm and learning rate.

        Raises UserError where the loss, a gradient, or a weight after the step is not finite. After the last step the
        loss on the minibatch must be finite, too: no other step would find out.
        """
        rate = self.config.learning_rate * schedule(
            self.steps, self.config.warmup_steps, self.total_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with self._dropout():
            loss = self._backward(observation, tokens)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self._require_finite("gradient norm", norm.item())
        self.optimizer.step()
        if not finite(self.parameters):
            raise self._diverged("a weight after the step is not finite")
        self.steps += 1
        if self.steps >= self.total_steps:
            self._require_finite("the loss after the last step", self.loss(observation, tokens))
        return {"loss": loss, "grad_norm": norm.item(), "learning_rate": rate}

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """Inside, the adapters drop inputs if they are to; everywhere else the policy is the one that plays."""
        module = self.policy if self._drops_inputs and isinstance(self.policy, nn.Module) else None
        if module is not None:
            module.train()
        try:
            yield
        finally:
            if module is not None:
                module.eval()

    def _backward(self, observation: Observation, tokens: Int64[Tensor, "B K"]) -> float:
        """Add up the gradient of the mean loss over micro-batches; returns that loss."""
        size = self.config.micro_batch or len(tokens)
        count, total = self._count(tokens), 0.0
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            rows = np.arange(start, start + len(part))
            seen = observation if len(part) == len(tokens) else observation.select(rows)
            log_probs = self.policy.evaluate(seen, part).log_probs
            if count == tokens.numel():
                loss = -log_probs.mean() * (len(part) / len(tokens))
            else:  # what is behind an end token is 0, and no part of the mean
                loss = -log_probs.sum() / count
            self._require_finite("loss", loss.item())
            loss.backward()
            total += loss.item()
        return total

    def loss(self, observation: Observation, tokens: Int64[Tensor, "N K"]) -> float:
        """The same cross-entropy without learning from it, for any number of samples."""
        size, total = self.config.micro_batch or self.config.batch_size, 0.0
        with torch.no_grad():
            for start in range(0, len(observation), size):
                rows = np.arange(start, min(start + size, len(observation)))
                part = tokens[start : start + size]
                log_probs = self.policy.evaluate(observation.select(rows), part).log_probs
                total -= float(log_probs.sum())
        return total / self._count(tokens)

    def _count(self, tokens: Int64[Tensor, "N K"]) -> int:
        """How many of these tokens are decisions."""
        decisions = decided(self.policy, tokens)
        return tokens.numel() if decisions is None else int(decisions.sum())

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise self._diverged(f"{what} is {value}")

    def _diverged(self, how: str) -> UserError:
        return UserError(
            f"fine-tuning diverged: {how} at step {self.steps} of {self.total_steps} "
            f"(learning rate {self.config.learning_rate:g}). Expected a finite number; nothing of it is saved. "
            "Lower the learning rate or max_grad_norm, or lengthen the warm-up."
        )


def schedule(step: int, warmup: int, total: int) -> float:
    """Factor on the learning rate: linear over `warmup` steps, times a cosine from 1 to FINAL_LEARNING_RATE."""
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))
    return ramp * (FINAL_LEARNING_RATE + (1 - FINAL_LEARNING_RATE) * cosine)


def epoch_batches(
    rows: Int64[np.ndarray, " N"], batch_size: int, rng: np.random.Generator
) -> list[Int64[np.ndarray, " B"]]:
    """All rows in a fresh order, cut into about equal batches of about `batch_size`: no sample is left out."""
    return np.array_split(rng.permutation(rows), num_batches(len(rows), batch_size))


def num_batches(samples: int, batch_size: int) -> int:
    """How many batches `epoch_batches` makes."""
    return max(1, round(samples / batch_size))


def random_shift(
    images: UInt8[np.ndarray, "B H W 3"], max_shift: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "B H W 3"]:
    """Shift each image by its own random whole number of pixels, up to `max_shift` each way."""
    shifts = rng.integers(-max_shift, max_shift + 1, size=(len(images), 2))
    return shift_images(images, shifts, max_shift)


def shift_images(
    images: UInt8[np.ndarray, "B H W 3"], shifts: Int64[np.ndarray, "B 2"], max_shift: int
) -> UInt8[np.ndarray, "B H W 3"]:
    """Move each image's content down and right by `shifts[b] = (dy, dx)`, |d| <= max_shift.

    The edge is repeated where nothing moves in: the pad-and-crop augmentation of DrQ (arXiv:2004.13649).
    """
    if max_shift == 0:
        return images
    _, height, width, _ = images.shape
    border = (max_shift, max_shift)
    padded = np.pad(images, ((0, 0), border, border, (0, 0)), mode="edge")
    rows = max_shift - shifts[:, 0, None] + np.arange(height)
    columns = max_shift - shifts[:, 1, None] + np.arange(width)
    batch = np.arange(len(images))[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]]
