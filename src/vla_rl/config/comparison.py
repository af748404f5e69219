"""What is compared: runs with runs, several seeds of one run, and practice with more demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_rl.config.bounds import Config, Count, NotNegative, Seed, Workers
from vla_rl.config.errors import require


@dataclass(frozen=True)
class CompareConfig(Config):
    """Compare training runs, alike but for their seed, with others."""

    runs: tuple[str, ...]
    """Run folders, folders of runs, or patterns. Runs that differ in their seed alone are one group; `NAME=RUN` puts
    runs into a group by name. Differences are to the first group."""
    out: Path = Path("runs/comparison")
    """Folder of the table (comparison.md), all values (comparison.json) and the pictures."""
    title: str = ""
    """Heading of the table and of the pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.runs) > 0, "compare: expected runs: vla-rl compare runs/a-* runs/b-*")
