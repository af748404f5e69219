"""The article's reward model: progress, read off the last token's hidden state.

    Task: open a drawer
    Progress so far:
    Step 1: [IMAGE] -> Action: (10, -25, 0, 100)
    Step 2: [IMAGE] -> Action: (12, -20, 0, 100)
    Current observation: [IMAGE]
    Rate the progress toward completing the task (0-1):        -> Linear 256, ReLU, Linear 1, sigmoid

It learns the progress of labels.scheme segments by cross-entropy with that number as the target. Its minimum is where
that of the squared error is, the mean; the article names no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from vla_rl.config import UserError
from vla_rl.config.reward import PROGRESS_PROMPT
from vla_rl.policies.safetensors_files import read_tensors, save_tensors
from vla_rl.rewards.process.model import REMEDY

HEAD_FILE = "progress_head.safetensors"
HEAD_NAME = "progress_head"
"""Where the backbone holds the head, so that both are trained, moved and told from others as one network."""
HIDDEN = 256
"""Width of the head (the article's)."""
HUNDREDTHS = 100
"""Actions are written as whole hundredths of the simulator's unit: few tokens, and a sign that is easy to see."""


class ProgressHead(nn.Module):
    """Linear 256, ReLU, Linear 1. The sigmoid is taken where a number between 0 and 1 is wanted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, HIDDEN)
        self.progress = nn.Linear(HIDDEN, 1)

    def forward(self, state: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """The log-odds of progress."""
        return self.progress(F.relu(self.hidden(state.float())))[:, 0]


def attach_head(model: nn.Module, width: int, seed: int = 0) -> ProgressHead:
    """A fresh head on `model`; the same seed always makes the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ProgressHead(width)
    model.add_module(HEAD_NAME, head)
    return head


def without_head(tensors: dict[str, Any]) -> dict[str, Any]:
    """The weights of the backbone alone."""
    return {name: t for name, t in tensors.items() if not name.startswith(f"{HEAD_NAME}.")}


def save_head(head: ProgressHead, folder: Path) -> None:
    save_tensors(head.state_dict(), folder / HEAD_FILE)


def load_head(head: ProgressHead, folder: Path) -> None:
    """Fill `head` from `folder`. UserError where it is missing, damaged, or belongs to another width."""
    file = folder / HEAD_FILE
    if not file.is_file():
        raise UserError(
            f"there is no {HEAD_FILE} in {folder}, and {folder.name} is a reward model with head regression. {REMEDY}"
        )
    found, wanted = read_tensors([file]), head.state_dict()
    if found.keys() != wanted.keys():
        raise UserError(
            f"{file}: expected the weights {', '.join(sorted(wanted))}, got {', '.join(sorted(found)) or 'none'}. "
            f"{REMEDY}"
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise UserError(
                f"{file}: {name} has shape {tuple(found[name].shape)}, the backbone's hidden states need "
                f"{tuple(tensor.shape)}: the head belongs to another backbone. {REMEDY}"
            )
    head.load_state_dict({name: tensor.float() for name, tensor in found.items()})


def written_action(action: Float32[np.ndarray, "C A"]) -> str:
    """(10, -25, 0, 100) for each action of a turn."""
    steps = (", ".join(f"{round(HUNDREDTHS * float(x))}" for x in step) for step in action)
    return " ".join(f"({step})" for step in steps)


def progress_parts(
    instruction: str, past: Sequence[Float32[np.ndarray, "C A"]]
) -> list[dict[str, str]]:
    """The message's parts: texts, and places of the images of the past steps and of the present one."""
    task, question = PROGRESS_PROMPT.split("\n")
    text = task.replace("{instruction}", instruction) + "\nProgress so far:\n"
    parts: list[dict[str, str]] = []
    for number, action in enumerate(past, start=1):
        parts += [{"type": "text", "text": f"{text}Step {number}: "}, {"type": "image"}]
        text = f" -> Action: {written_action(action)}\n"
    parts += [{"type": "text", "text": f"{text}Current observation: "}, {"type": "image"}]
    return [*parts, {"type": "text", "text": f"\n{question}"}]
