"""Supervised fine-tuning on demonstrations: the policy that PPO starts from.

vla-rl sft --dataset runs/demos --out runs/sft

read the dataset -> actions to tokens -> the tiny policy from scratch, or a checkpoint
repeat: every frame once, its image shifted by a few pixels -> cross-entropy on the action tokens
-> <out>/policy in OpenVLA's format, <out>/metrics.jsonl with one line an epoch
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from vla_rl.algorithms.sft import SFT, epoch_batches, num_batches, random_shift
from vla_rl.config import SFTConfig, UserError
from vla_rl.data.demonstrations import (
    ENVIRONMENT_FILE,
    Demonstrations,
    action_chunks,
    load_demonstrations,
)
from vla_rl.policies.policy import Policy
from vla_rl.policies.registry import POLICIES, SCRATCH, load_policy
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.external import read_json
from vla_rl.runtime.files import whole_folder, write_json
from vla_rl.runtime.progress import Reporter, console, progress
from vla_rl.runtime.run_folder import ENVIRONMENT_OF_RUN, Run
from vla_rl.runtime.seeding import generator, seed_everything

SMALL_MODEL = 20_000_000
"""Weights up to which a model is small."""
HELD_PICTURES = 4096
"""Of the held-out frames that are taken out of a dataset at a time."""
Evaluate = Callable[[Policy, int], float]
"""Measures success in simulation: called with the policy and the number of finished epochs."""


def fine_tune(config: SFTConfig, evaluate: Evaluate | None = None) -> Path:
    """Fine-tune on `config.dataset` and return the folder of the policy, `<out>/policy`.

    `evaluate`, where given, is called after the last epoch, and its result logged as success. The result depends on
    the configuration alone (bit for bit on one kind of CPU). Raises UserError for a dataset that is missing,
    empty, damaged or of another action size, for an `out` that is in use, and when the loss diverges.
    """
    out = Path(config.out)
    require_unused(out)
    seed_everything(config.seed)
    environment = environment_of(Path(config.dataset))
    demos = load_demonstrations(
        config.dataset,
        camera=config.camera,
        image_size=config.image_size,
        image_fit=config.image_fit,
        scratch=next(folder for folder in out.absolute().parents if folder.is_dir()),
    )
    policy = build_policy(config, demos)
    tokens = policy.encode_actions(
        action_chunks(demos.actions, demos.episode_ids, config.action_chunk)
    )
    training, validation = demos.split(
        config.validation_fraction, generator(config.seed, "sft", "validation")
    )
    steps = config.epochs * num_batches(len(training), config.batch_size)
    learner = SFT(policy, config, steps)
    say = console().print
    say(
        f"{len(training)} training, {len(validation)} validation samples of {demos.num_episodes} episodes"
    )
    with (
        Run.create(out.parent, out.name, config, sys.argv) as run,
        use_threads(torch_threads(policy)),
        progress("fine-tuning", total=steps) as bar,
    ):
        for epoch in range(1, config.epochs + 1):
            # 1. every frame once, in a new order, its image shifted a little
            rng = generator(config.seed, "sft", "epoch", epoch)
            metrics: dict[str, float] = {"epoch": epoch}
            metrics |= train_epoch(learner, demos, tokens, training, rng, bar, epoch)

            # 2. what the held-out episodes say
            if len(validation):
                metrics["sft/validation_loss"] = validation_loss(learner, demos, tokens, validation)
            if evaluate is not None and epoch == config.epochs:
                metrics["sft/success"] = evaluate(policy, epoch)
            run.log(epoch, metrics)
        with whole_folder(out / "policy") as folder:
            policy.save(folder)
        if environment is not None:
            write_json(out / ENVIRONMENT_OF_RUN, environment)
    say("  ".join(f"{name.removeprefix('sft/')} {value:.3g}" for name, value in metrics.items()))
    return out / "policy"


def environment_of(dataset: Path) -> dict[str, Any] | None:
    """Where the demonstrations were played, if the dataset says so: the policy is evaluated there, too."""
    path = dataset / ENVIRONMENT_FILE
    return read_json(path, inside=dataset) if path.is_file() else None


def validation_loss(
    learner: SFT, demos: Demonstrations, tokens: Int64[Tensor, "F K"], rows: Int64[np.ndarray, " V"]
) -> float:
    """Cross-entropy (nats a token) of the frames `rows`, of which no more are held in memory than need be."""
    size = learner.config.micro_batch or learner.config.batch_size
    step = max(1, HELD_PICTURES // size) * size
    parts = [rows[start : start + step] for start in range(0, len(rows), step)]
    losses = [learner.loss(demos.observation(part), tokens[part]) * len(part) for part in parts]
    return sum(losses) / len(rows)


def train_epoch(
    learner: SFT,
    demos: Demonstrations,
    tokens: Int64[Tensor, "F K"],
    training: Int64[np.ndarray, " T"],
    rng: np.random.Generator,
    bar: Reporter,
    epoch: int,
) -> dict[str, float]:
    """One pass over the frames `training`; returns the means of what the updates report."""
    history: list[dict[str, float]] = []
    for rows in epoch_batches(training, learner.config.batch_size, rng):
        seen = demos.observation(rows)
        shifted = random_shift(seen.images, learner.config.random_shift, rng)
        history.append(learner.update(replace(seen, images=shifted), tokens[rows]))
        bar.advance(1, epoch=epoch, loss=history[-1]["loss"])
    return {f"sft/{key}": float(np.mean([h[key] for h in history])) for key in history[0]}


def require_unused(out: Path) -> None:
    """Raise UserError if the run folder holds anything: a policy is never overwritten."""
    if out.exists() and (out.is_file() or any(path.name != ".lock" for path in out.iterdir())):
        raise UserError(f"{out} exists and is not empty: give another --out, or remove it")


def torch_threads(policy: Policy) -> int:
    """Threads for torch: one for a small model, else all cores (0).

    Layers of a small model are too short to share: measured on two cores, the second thread gains nothing on an idle
    machine and makes a step ten times slower beside another busy process. One thread also gives the same result
    on any number of cores.
    """
    parameters = policy.policy_parameters()
    small = sum(parameter.numel() for parameter in parameters) < SMALL_MODEL
    return 1 if small and parameters[0].device.type == "cpu" else 0


def build_policy(config: SFTConfig, demos: Demonstrations) -> Policy:
    """The tiny policy for these demonstrations, or the checkpoint with their action statistics.

    Raises UserError if the checkpoint plays actions of another size.
    """
    statistics = {Path(config.dataset).resolve().name: dataset_statistics(demos)}
    action_dim, folder = demos.actions.shape[1], config.policy.checkpoint
    if not folder:
        return POLICIES[SCRATCH].create(
            demos.image_size, demos.instructions, statistics, action_dim, config.action_chunk,
            config.policy, config.seed, demos.image_fit,
        )  # fmt: skip
    loaded = load_policy(folder, config.policy, seed=config.seed)
    if loaded.action_dim != action_dim:
        raise UserError(
            f"{config.dataset}: expected actions of size {loaded.action_dim}, as the policy in {folder} plays them, "
            f"got {action_dim}. Take a dataset of the same robot, or train from scratch (empty policy.checkpoint)."
        )
    policy = loaded.with_actions_of(statistics, config.action_chunk, demos.image_fit)
    if not policy.resizes_images and policy.image_size != demos.image_size:
        raise UserError(
            f"{config.dataset}: expected images of {policy.image_size} px, as the policy in {folder} sees them, got "
            f"{demos.image_size} px. Give --image-size {policy.image_size}."
        )
    return policy


def dataset_statistics(demos: Demonstrations) -> dict[str, Any]:
    """One dataset's entry of dataset_statistics.json: q01 and q99 are what the action tokens -1 and +1 stand for."""
    actions = demos.actions.astype(np.float64)
    action = {
        "mean": actions.mean(axis=0).tolist(),
        "std": actions.std(axis=0).tolist(),
        "min": actions.min(axis=0).tolist(),
        "max": actions.max(axis=0).tolist(),
        "q01": demos.action_low.tolist(),
        "q99": demos.action_high.tolist(),
        "mask": [True] * actions.shape[1],
    }
    return {
        "action": action,
        "num_transitions": len(demos),
        "num_trajectories": demos.num_episodes,
    }
