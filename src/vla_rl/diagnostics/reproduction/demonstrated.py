"""How likely an expert's tokens are to a checkpoint, by one setting and by another.

    mean over frames of  (1 / K) sum_k log pi(demonstrated token_k | image, instruction)      nats a token

A model knows what it was fine-tuned on. Where frames, gripper, statistics or class are taken otherwise than in its
fine-tuning, its tokens become less likely, so that the likeliest reading is the right one. The same frames are compared
by both readings, and the difference counts where it is large beside its spread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from vla_rl.config import UserError
from vla_rl.data.demonstrations import Demonstrations, action_chunks, load_demonstrations
from vla_rl.diagnostics.reproduction.settings import Settings, understood
from vla_rl.envs.registry import benchmark, robots
from vla_rl.policies.openvla.images.pipeline import rotate_180
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.runtime.resizing import resize
from vla_rl.types import Observation

FRAMES = 192
"""Of the demonstrations that are looked at, evenly spread over them."""
BATCH = 8
MARGIN = 0.05
"""Nats a token by which a reading must be better before that points at anything."""
ERRORS = 3.0
"""Standard errors by which it must be better."""
QUANTILES = "the demonstrations' 1 % and 99 % quantiles"
FULL_RANGE = "-1 to 1"


@dataclass(frozen=True)
class Difference:
    """Log-likelihood by another reading less that by the first, nats a token, over the same frames."""

    before: float
    after: float
    error: float
    """Standard error of after - before."""

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def is_clear(self) -> bool:
        """Whether the other reading is the better one beyond doubt."""
        return self.gain > max(MARGIN, ERRORS * self.error)

    def __str__(self) -> str:
        return (
            f"{self.after:.2f} instead of {self.before:.2f} nats a token (difference {self.gain:+.2f} +- "
            f"{self.error:.2f})"
        )


def demonstrations_of(folder: Path, suite: str, action_size: int) -> Demonstrations:
    """The demonstrations in a LeRobotDataset v3 whose tasks `suite` has. UserError where there are none."""
    demos = load_demonstrations(
        folder,
        action_size=action_size,
        image_fit="pad",
        normalised_robots=set(robots()),
        scratch=folder,
    )
    known = set(benchmark(suite).instructions(suite))
    tasks = [i for i, text in enumerate(demos.instructions) if text in known]
    rows = np.flatnonzero(np.isin(demos.task_ids, tasks))
    if not len(rows):
        raise UserError(
            f"{folder}: expected demonstrations of {suite}, got those of other tasks, such as "
            f"{demos.instructions[0]!r}: give the suite's own with --demos"
        )
    return replace(
        demos,
        images=demos.images[rows],
        proprio=demos.proprio[rows],
        actions=demos.actions[rows],
        episode_ids=demos.episode_ids[rows],
        task_ids=demos.task_ids[rows],
    )


class Likelihoods:
    """Log-likelihoods of the same demonstrated frames by several settings; each is computed once."""

    def __init__(
        self, policy: OpenVLAPolicy, demos: Demonstrations, statistics: Mapping[str, Any]
    ) -> None:
        self._policy, self._demos, self._statistics = policy, demos, statistics
        self._rows: Int64[np.ndarray, " F"] = np.unique(
            np.linspace(0, len(demos) - 1, FRAMES).astype(np.int64)
        )
        self._known: dict[Settings, Float64[np.ndarray, " F"]] = {}

    @property
    def chance(self) -> float:
        """If all values of a token were equally likely."""
        return -math.log(self._policy.action_tokenizer.bins)

    def mean(self, settings: Settings) -> float:
        return float(self._of(settings).mean())

    def compare(self, before: Settings, after: Settings) -> Difference:
        """What reading the frames by `after` instead of `before` makes of their likelihood."""
        first, second = self._of(before), self._of(after)
        error = float(np.std(second - first, ddof=1)) / math.sqrt(len(first))
        return Difference(float(first.mean()), float(second.mean()), error)

    def _of(self, settings: Settings) -> Float64[np.ndarray, " F"]:
        # what a likelihood does not depend on
        key = replace(settings, temperature=0.0, horizon=1, settle_steps=0)
        if key not in self._known:
            self._known[key] = self._measured(key)
        return self._known[key]

    def _measured(self, settings: Settings) -> Float64[np.ndarray, " F"]:
        policy, demos = understood(self._policy, settings, self._statistics), self._demos
        chunks = action_chunks(demos.actions, demos.episode_ids, policy.action_chunk)[self._rows]
        tokens = policy.encode_actions(chunks)
        found = []
        with torch.no_grad():
            for start in range(0, len(self._rows), BATCH):
                part = slice(start, start + BATCH)
                seen = _as_seen(demos.observation(self._rows[part]), settings, policy)
                found.append(policy.evaluate(seen, tokens[part]).log_probs.mean(1).double().cpu())
        return torch.cat(found).numpy()


def _as_seen(seen: Observation, settings: Settings, policy: OpenVLAPolicy) -> Observation:
    images = seen.images if policy.resizes_images else resize(seen.images, policy.image_size)
    return replace(seen, images=rotate_180(images) if settings.turned else images)


def statistics_of(demos: Demonstrations) -> dict[str, Any]:
    """Statistics that a checkpoint may have been fine-tuned with, whatever stands in its files, in their format.

    The quantiles that OpenVLA's fine-tuning takes, gripper untouched; and the simulator's whole range.
    """
    low, high = np.quantile(demos.actions.astype(np.float64), [0.01, 0.99], axis=0)
    size = len(low)
    mask = [True] * (size - 1) + [False]
    quantiles = {"q01": low.tolist(), "q99": high.tolist(), "mask": mask}
    whole = {"q01": [-1.0] * size, "q99": [1.0] * size, "mask": [True] * size}
    return {QUANTILES: {"action": quantiles}, FULL_RANGE: {"action": whole}}
