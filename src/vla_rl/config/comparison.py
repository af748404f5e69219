"""What is compared: runs with runs, and practice with more demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from vla_rl.config.bounds import Config, Count, Workers
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
        require(len(self.runs) > 0, "expected runs: vla-rl compare runs/a-* runs/b-*")


@dataclass(frozen=True)
class CompareDataConfig(Config):
    """Practice against more demonstrations: fine-tuning on more and more of them, and practice from few."""

    preset: str = "metaworld-mt5"
    """Training preset; its suite is demonstrated, fine-tuned on and practised."""
    out: str = "runs/compare-data"
    """Folder of the demonstrations, of all runs, and of the results: data.md, data.json and data.png."""
    sizes: tuple[Count, ...] = (1, 2, 5, 10, 20)
    """Demonstrations of each task to fine-tune on. Each size takes the first of the largest's."""
    practise: tuple[Count, ...] = (1, 2, 5)
    """The sizes whose policies go on to practise."""
    seeds: Count = 3
    """Runs of each kind, with seeds 0, 1, ... The demonstrations are the same for all of them."""
    sft_episodes: Count = 600
    """Demonstrations of each task that a fine-tuning sees in all, one as often as another: the same work for every
    size. The epochs are this number over the size."""
    start_episodes: Count = 140
    """The same of the fine-tunings that practice starts from, the quickstart's by default. Few on purpose: a policy
    that knows its demonstrations by heart samples what it would do anyway, and has nothing to find out."""
    iterations: Count = 60
    """Updates of each practice, each after the same number of turns."""
    episodes_per_task: Count | None = None
    """Held-out initial states per task to evaluate on; by default the protocol's."""
    jobs: Annotated[int, Ge(1), Le(1024)] = 1
    """Runs at a time. Each wants `cores` of its own."""
    cores: Workers = 0
    """Simulator processes and learner threads of each run; 0 shares out the machine's cores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, sizes in (("sizes", self.sizes), ("practise", self.practise)):
            require(
                len(set(sizes)) == len(sizes) > 0,
                f"{name}: expected different numbers of demonstrations, at least one, got {list(sizes)}",
            )
        unknown = [size for size in self.practise if size not in self.sizes]
        require(
            not unknown,
            f"practise: {', '.join(map(str, unknown))} not among the sizes {list(self.sizes)}: practice starts from "
            f"the "
            "policy that was fine-tuned on so many demonstrations",
        )
