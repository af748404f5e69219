"""The main job from nothing to a report."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.config.bounds import Config, Count, Positive, Seed, Whole


@dataclass(frozen=True)
class QuickstartConfig(Config):
    """The main job from nothing to a report: demonstrations, fine-tuning, PPO, evaluation."""

    out: str = "runs/quickstart"
    """Folder of everything: demos, sft, the training run `ppo`, report.html."""
    preset: str = "metaworld-mt5"
    """Training preset; its suite is demonstrated, fine-tuned on and practised."""
    episodes: Whole | None = None
    """Episodes of practice, so that machines of every speed do the same work; 0: only `minutes` counts. By default the
    preset's, 10,000 if it names none."""
    minutes: Positive = 30.0
    """At most so many minutes of practice, evaluations apart."""
    demos_per_task: Count = 5
    """Demonstrations per task to fine-tune on; one more is collected for the validation loss."""
    sft_epochs: Count = 28
    """Passes over the demonstrations. Few on purpose: practice starts from a policy that often fails (30 epochs: about
    four in ten of its episodes succeed; 60: about three quarters)."""
    episodes_per_task: Count | None = None
    """Held-out initial states per task, evaluated before and after; by default all on LIBERO, 30 on the others."""
    seed: Seed = 0
    """Seed of the demonstrations, of fine-tuning, of PPO and of the evaluations."""
    force: bool = False
    """Throw away what an earlier quickstart left in `out` and start anew."""
