"""The run folder, seeds, checkpoints and sinks."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.config.bounds import Config, Count, Seed, Whole, Workers


@dataclass(frozen=True)
class RunConfig(Config, group="run"):
    """The run folder, seeds, checkpoints and sinks."""

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
    tensorboard: bool = True
    """Also log to TensorBoard, where it is installed (the extra `vla-rl[tensorboard]`)."""
    wandb: bool = False
    """Also log to Weights & Biases (needs the extra `vla-rl[wandb]`)."""
