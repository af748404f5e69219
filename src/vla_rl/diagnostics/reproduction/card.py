"""Published figures, and the card beside a checkpoint that states one: what was measured, and by which protocol.

reproduce.json   {"suite": "libero-object:0", "success_rate": 0.82, "episodes": 50, "episodes_per_task": 50,
                  "env": {...}, "settings": {...}, "preset": "libero-object-tiny", "source": "..."}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MaxLen

from vla_rl.config import EnvConfig, UserError
from vla_rl.config.serialize import from_json, to_json
from vla_rl.diagnostics.reproduction.settings import Settings
from vla_rl.runtime.external import read_json
from vla_rl.runtime.files import write_json

CARD = "reproduce.json"
FORMAT = 1
MOST_BYTES = 2**20

PUBLISHED = {
    "libero-spatial": 0.847,
    "libero-object": 0.884,
    "libero-goal": 0.792,
    "libero-10": 0.537,
}
"""OpenVLA-7B fine-tuned on each suite, greedy, 10 tasks x 50 initial states: arXiv 2406.09246 and, as the baseline,
arXiv 2505.18719."""

Share = Annotated[float, Ge(0), Le(1)]
Name = Annotated[str, MaxLen(255)]


@dataclass(frozen=True)
class _Settings:
    kind: Name
    statistics: Name
    images: Name
    turned: bool
    gripper: Name
    temperature: Annotated[float, Ge(0), Le(100)]
    horizon: Annotated[int, Gt(0), Le(1_000_000)]
    settle_steps: Annotated[int, Ge(0), Le(1_000_000)]


@dataclass(frozen=True)
class _Card:
    suite: Annotated[str, MaxLen(4000)]
    success_rate: Share
    episodes: Annotated[int, Gt(0)]
    episodes_per_task: Annotated[int, Gt(0)]
    env: dict[str, Any]
    settings: _Settings
    format: Annotated[int, Ge(FORMAT), Le(FORMAT)] = FORMAT
    preset: Name = ""
    source: Annotated[str, MaxLen(4000)] = ""


@dataclass(frozen=True)
class Figure:
    """What is to be reproduced."""

    success_rate: float
    source: str
    episodes: int = 0
    """In how many it was measured; 0 where that is not said."""


@dataclass(frozen=True)
class Card:
    """A figure with the protocol it was measured by."""

    figure: Figure
    env: EnvConfig
    settings: Settings
    episodes_per_task: int
    preset: str = ""


def read_card(folder: Path) -> Card | None:
    """The card in a checkpoint's folder, None where there is none. UserError where it is damaged."""
    path = folder / CARD
    if not path.is_file():
        return None
    found = read_json(path, _Card, inside=folder, max_bytes=MOST_BYTES)
    env = from_json(EnvConfig, found.env, "env", source=path)
    if env.suite != found.suite:
        raise UserError(
            f"{path}: expected one suite, got {found.suite!r} and, in env, {env.suite!r}. Fix the file or fetch it "
            "again"
        )
    figure = Figure(found.success_rate, found.source or str(path), found.episodes)
    settings = Settings(**asdict(found.settings))
    return Card(figure, env, settings, found.episodes_per_task, found.preset)


def write_card(folder: Path, card: Card) -> Path:
    """Write the card into a checkpoint's folder; returns the file."""
    content = {
        "format": FORMAT,
        "suite": card.env.suite,
        "success_rate": card.figure.success_rate,
        "episodes": card.figure.episodes,
        "episodes_per_task": card.episodes_per_task,
        "settings": asdict(card.settings),
        "env": to_json(card.env),
        "preset": card.preset,
        "source": card.figure.source,
    }
    write_json(folder / CARD, content)
    return folder / CARD
