"""Our own policy behind an engine's socket: for a GPU of its own, and to compare others with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from vla_rl import __version__
from vla_rl.config import PolicyConfig
from vla_rl.policies.openvla.decoding import TokenDecoder
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.openvla.processing import pixel_values
from vla_rl.policies.prompts import Prompts
from vla_rl.serving.backend import Question
from vla_rl.serving.messages import Facts
from vla_rl.serving.server import count_numbers


class OwnBackend:
    """An `OpenVLAPolicy` without adapters as a `Backend`."""

    def __init__(self, policy: OpenVLAPolicy) -> None:
        self.policy, self.model = policy, policy.model
        self.config = policy.description.model
        self.shapes = {name: tuple(t.shape) for name, t in self.model.state_dict().items()}
        language = self.config.language
        weight = language_weight(policy)
        self.facts = Facts(
            engine="own",
            library=f"vla-rl {__version__}",
            dtype=str(weight.dtype).removeprefix("torch."),  # type: ignore[arg-type]
            device=str(weight.device),
            image_size=self.config.image_size,
            bos_token=language.bos_token,
            first_action=language.text_vocab - self.config.action_bins,
            action_bins=self.config.action_bins,
            longest=language.max_positions - self.model.patches,
            weight_count=count_numbers(self.shapes),
        )

    @staticmethod
    def of(checkpoint: Path, dtype: str = "auto", device: str = "auto") -> OwnBackend:
        """Load a whole checkpoint. Raises UserError as `OpenVLAPolicy.from_checkpoint`."""
        config = replace(PolicyConfig(), device=device, dtype=dtype)
        return OwnBackend(OpenVLAPolicy.from_checkpoint(checkpoint, config))

    @torch.inference_mode()
    def act(self, question: Question) -> tuple[Int64[Tensor, "N K"], Float32[Tensor, "N K"]]:
        device = self.policy.device
        raw = question.images.to(device).float().contiguous()
        prompts = padded(question.prompts, self.config.language.pad_token, device)
        decoder = TokenDecoder(self.model, question.count)
        hidden, state = decoder.prefill(pixel_values(raw, self.config), prompts)
        draws = torch.from_numpy(_draws(question)).to(device)
        # a draw that is no number takes the likeliest token, with its log-prob
        tokens, log_probs = decoder.choose(hidden, state, draws, question.temperature or 1.0)
        ids = self.config.language.text_vocab - 1 - tokens
        return ids.cpu().clone(), log_probs.float().cpu().clone()

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        state = self.model.state_dict()
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> Prompts:
    """Prompts of different lengths as one batch, padded on the right."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.full((len(rows), int(lengths.max())), pad, dtype=np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return Prompts(torch.from_numpy(ids).to(device), lengths)


def language_weight(policy: OpenVLAPolicy) -> Tensor:
    """A weight of the policy that tells precision and device of all."""
    return policy.model.language_model.lm_head.weight


def _draws(question: Question) -> Float32[np.ndarray, "N K"]:
    """Uniform numbers, a stream for each row's seed; NaN where the likeliest is to be taken."""
    shape = (len(question.prompts), question.count)
    if question.temperature == 0:
        return np.full(shape, np.nan, np.float32)
    rows = [np.random.default_rng(seed).random(shape[1], np.float32) for seed in question.seeds]
    return np.stack(rows)
