"""Where an episode of practice starts: at its beginning, or at a state that a demonstration has been in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_rl.config.bounds import Config, Count, Share, ShareBelowOne


@dataclass(frozen=True)
class StartsConfig(Config, group="starts"):
    """Episodes that start at states of demonstrations: privileged resets, without any action of the expert."""

    dataset: str = ""
    """Folder of demonstrations with snapshots (`vla-rl demos --snapshots`); empty: every episode starts at its
    beginning."""
    share: ShareBelowOne = 0.5
    """Share of the episodes that start there; the others always start at their beginning, and they alone count."""
    draw: Literal["reverse", "uniform"] = "reverse"
    """reverse: at the same share of every demonstration of a task, which moves back as the policy succeeds from there.
    uniform: at any action of the demonstration, each as likely."""
    fraction: ShareBelowOne = 0.9
    """reverse: the share of a demonstration at which the episodes of a task start at first."""
    measured: str = ""
    """reverse: the file that `vla-rl eval --starts --json` wrote; each task then starts at the smallest share of a
    demonstration at which success was at least a half, or at `fraction` where it never was."""
    step: ShareBelowOne = 0.05
    """reverse: by how much the share moves back."""
    window: Count = 30
    """reverse: the share moves back when so many episodes that started there have ended and enough succeeded."""
    threshold: Share = 0.6
    """reverse: share of those episodes that must have succeeded for it."""
