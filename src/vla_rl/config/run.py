"""The run folder, seeds, checkpoints and sinks."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.config.errors import require


@dataclass(frozen=True)
class RunConfig:
    """The run folder, seeds, checkpoints and sinks."""

    name: str = ""
    """Name of the run folder; empty takes the preset's name and the time."""
    root: str = "runs"
    seed: int = 0
    save_every: int = 10
    """Iterations between checkpoints; the last one is always saved."""
    keep: int = 2
    """Checkpoints kept beside the best one."""
    eval_every: int = 0
    """Iterations between evaluations during training; 0 evaluates only before and after."""
    threads: int = 0
    """Shares into which the learner splits a minibatch on the CPU, one thread each; 0 takes one per core."""
    torch_threads: int = 1
    """Threads inside each torch operation. Above 1 any other process on the machine makes training many times slower;
    worth it only for large models on an idle CPU."""
    tensorboard: bool = True
    wandb: bool = False
    """Also log to Weights & Biases (needs the extra `vla-rl[wandb]`)."""

    def __post_init__(self) -> None:
        require(self.save_every >= 1, f"run.save_every must be at least 1, got {self.save_every}")
        require(self.keep >= 1, f"run.keep must be at least 1, got {self.keep}")
        require(self.threads >= 0, f"run.threads must be 0 (all cores) or more, got {self.threads}")
        require(
            self.torch_threads >= 0,
            f"run.torch_threads must be 0 (all cores) or more, got {self.torch_threads}",
        )
