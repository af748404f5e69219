"""The run folder, seeds, checkpoints and trackers."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.config.bounds import Config, Count, Seed, Whole, Workers
from vla_rl.config.errors import ConfigError, nearest

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class RunConfig(Config, group="run"):
    """The run folder, seeds, checkpoints and trackers."""

    name: str = ""
    """Name of the run folder; empty takes the preset's name and the time."""
    root: str = "runs"
    """Folder that holds the run folders."""
    seed: Seed = 0
    """Seeds the critic, the sampling of actions, the order of samples and the choice of tasks."""
    save_every: Count = 10
    """Iterations between checkpoints; the last one is always saved."""
    keep: Count = 2
    """Checkpoints kept beside the best one."""
    eval_every: Whole = 0
    """Iterations between evaluations during training; 0 evaluates only before and after."""
    threads: Workers = 0
    """Shares into which the learner splits a minibatch on the CPU, one thread each; 0 takes one per core."""
    torch_threads: Workers = 1
    """Threads inside each torch operation. Above 1 any other process on the machine makes training many times slower;
    worth it only for large models on an idle CPU."""
    trackers: str = AUTO
    """Where the metrics are copied to, by commas: tensorboard, wandb, mlflow, trackio. auto is TensorBoard where it is
    installed, none is metrics.jsonl alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        tracker_names(self.trackers)


def tracker_names(trackers: str) -> tuple[str, ...]:
    """The names in `run.trackers`, `auto` among them as it stands, each once; none for `none`.

    ConfigError for a name that is not known, and where `none` stands beside another.
    """
    names = tuple(dict.fromkeys(name.strip() for name in trackers.split(",")))
    known = (*TRACKERS, AUTO, NONE)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"run.trackers: expected {', '.join(known[:-1])} or {NONE}, several of them by commas, got "
                f"{name!r}.{nearest(name, known)}"
            )
    if NONE in names and len(names) > 1:
        raise ConfigError(f"run.trackers: none stands alone, got {trackers!r}")
    return () if NONE in names else names
