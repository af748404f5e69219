"""The main job from nothing to a report."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.config.errors import require


@dataclass(frozen=True)
class QuickstartConfig:
    """The main job from nothing to a report: demonstrations, fine-tuning, PPO, evaluation."""

    out: str = "runs/quickstart"
    """Folder of everything: demos, sft, the training run `ppo`, report.html."""
    preset: str = "metaworld-mt5"
    """Training preset; its suite is demonstrated, fine-tuned on and practised."""
    episodes: int = 10_000
    """Episodes of practice, so that machines of every speed do the same work; 0: only `minutes` counts."""
    minutes: float = 30.0
    """At most so many minutes of practice, evaluations apart."""
    demos_per_task: int = 5
    """Demonstrations per task to fine-tune on; one more is collected for the validation loss."""
    sft_epochs: int = 28
    """Passes over the demonstrations. Few on purpose: practice starts from a policy that often fails (30 epochs: about
    four in ten of its episodes succeed; 60: about three quarters)."""
    episodes_per_task: int | None = None
    """Held-out initial states per task, evaluated before and after; by default 30 on Meta-World, all on LIBERO."""
    seed: int = 0
    force: bool = False
    """Throw away what an earlier quickstart left in `out` and start anew."""

    def __post_init__(self) -> None:
        require(self.minutes > 0, f"quickstart.minutes must be positive, got {self.minutes}")
        require(
            self.episodes >= 0,
            f"quickstart.episodes must be 0 (only minutes count) or more, got {self.episodes}",
        )
