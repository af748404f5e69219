"""The process reward model, taught on labelled episodes.

vla-rl reward train --datasets runs/demos runs/play --out runs/reward

read the episodes -> label their turns -> split by whole episodes -> the tiny reward model, or an image-text model
repeat: every labelled turn once, and some images under another task's instruction, where they cannot be positive
        -> cross-entropy on the answer token
-> <out>/reward_model, <out>/split.json, <out>/metrics.jsonl with one line an epoch
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from vla_rl.algorithms.reward_model import RewardModelBatch, RewardModelLearner, shift_sequences
from vla_rl.algorithms.sft import epoch_batches, num_batches
from vla_rl.config import RewardModelConfig
from vla_rl.functional import area_under_roc, calibration_error
from vla_rl.rewards.process.examples import (
    Examples,
    Rows,
    build_examples,
    require_both_classes,
)
from vla_rl.rewards.process.loading import (
    REWARD_MODEL_FOLDER,
    load_reward_model,
    reward_model_folder,
)
from vla_rl.rewards.process.mismatched import Mismatches
from vla_rl.rewards.process.model import TrainableRewardModel, probability
from vla_rl.rewards.process.splits import (
    SPLIT_FILE,
    Split,
    StoredSplit,
    read_split,
    split_episodes,
    write_split,
)
from vla_rl.rewards.trajectories import Trajectory
from vla_rl.rewards.trajectory_files import load_trajectories
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.files import require_writable, whole_folder
from vla_rl.runtime.memory import keep_freed_memory
from vla_rl.runtime.progress import note, progress
from vla_rl.runtime.run_folder import Run
from vla_rl.runtime.seeding import generator, seed_everything
from vla_rl.runtime.signals import StopRequest, graceful_stop
from vla_rl.training.epoch_state import EpochState, fingerprint, is_unfinished, open_epochs


def train_reward(config: RewardModelConfig) -> Path:
    """Train a reward model and return its folder, `<out>/reward_model`.

    The result depends on the configuration alone (bit for bit on one kind of CPU); one that was stopped or killed goes
    on with the same configuration. Raises UserError for datasets that are missing, empty, damaged or do not fit
    together, for labels of one class only, for a backbone that is no image-text model, for an `out` that is in use, and
    when the loss diverges, and `Stopped`, a KeyboardInterrupt, where a signal ended it.
    """
    keep_freed_memory()
    config = config.resolved()
    out = require_writable(Path(config.out), "folder")
    is_unfinished(out, config, out / REWARD_MODEL_FOLDER)
    seed_everything(config.seed)
    trajectories = read_trajectories(config)
    examples = build_examples(trajectories, config.labels, config.history, config.reads_actions)
    parent = parent_split(config)
    split = split_for(config, trajectories, parent)
    training, validation = (
        known_rows(examples, part) for part in (split.training, split.validation)
    )
    require_both_classes(examples.positive[training], "training episodes")
    reward_model = build_reward_model(config, examples)
    mismatches = Mismatches(examples, training, examples.instructions_of(training))
    note(describe(examples, split))
    if config.mismatched_share and mismatches.never_denied:
        note(undeniable(mismatches))
    with (
        open_epochs(out, config, out / REWARD_MODEL_FOLDER) as run,
        graceful_stop("this batch") as stop,
        use_threads(1 if config.is_tiny else 0),
    ):
        write_split(out, split, trajectories, parent)
        state = _learn(run, config, reward_model, examples, mismatches, validation, stop)
        with whole_folder(out / REWARD_MODEL_FOLDER) as folder:
            reward_model.save(folder)
        state.finish()
        stop.end(f"stopped by {stop.signal_name}; the reward model is complete")
    metrics = state.logged
    note("  ".join(f"{k.removeprefix('reward/')} {v:.3g}" for k, v in metrics.items()))
    return out / REWARD_MODEL_FOLDER


def _learn(
    run: Run,
    config: RewardModelConfig,
    reward_model: TrainableRewardModel,
    examples: Examples,
    mismatches: Mismatches,
    validation: Rows,
    stop: StopRequest,
) -> EpochState:
    """All epochs that are left; logs each."""
    examples_an_epoch = len(mismatches.rows) + mismatched_count(config, mismatches)
    steps = config.epochs * num_batches(examples_an_epoch, config.batch_size)
    learner = RewardModelLearner(reward_model, config, steps)
    taught = examples.progress if config.regresses else examples.positive
    data = fingerprint(mismatches.rows, taught, examples.actions)
    state = EpochState(run, learner, "reward", {"examples": data})
    state.restore()
    with closing(learner), progress("reward model", total=steps, start=learner.steps) as bar:
        for epoch in range(state.epoch, config.epochs + 1):
            for batch in state.left(epoch_of(config, examples, mismatches, epoch)):
                reported = learner.update(batch)
                bar.advance(1, epoch=epoch, loss=reported["loss"])
                state.done(reported, stop)
            state.save()
            state.log_epoch(lambda: validate(reward_model, examples, validation), stop)
    return state


# --------------------------------------------------------------------------------------------------
# Data


def read_trajectories(config: RewardModelConfig) -> list[Trajectory]:
    """The episodes of all datasets, in order."""
    return [
        trajectory
        for folder in config.datasets
        for trajectory in load_trajectories(
            folder,
            action_chunk=config.action_chunk,
            camera=config.camera,
            image_size=config.image_size,
            image_fit=config.image_fit,
        )
    ]


def parent_split(config: RewardModelConfig) -> StoredSplit | None:
    """The split of the reward model that is trained further, if there is one and its training run is there."""
    if not config.start:
        return None
    run = run_of(config.start)
    if run is None:
        note(
            f"{config.start} is a reward model without its training run: which episodes it learned from is not known, "
            "and some of them may be held out now"
        )
        return None
    return read_split(run)


def split_for(
    config: RewardModelConfig, trajectories: Sequence[Trajectory], parent: StoredSplit | None
) -> Split:
    """The split that this configuration always makes of these episodes."""
    rng = generator(config.seed, "reward", "split")
    return split_episodes(
        trajectories, config.validation_fraction, config.held_out_tasks, rng, parent
    )


def known_rows(examples: Examples, episodes: Rows) -> Rows:
    """The labelled turns of these episodes."""
    rows = examples.rows_of(episodes)
    return rows[examples.known[rows]]


def mismatched_count(config: RewardModelConfig, mismatches: Mismatches) -> int:
    """Mismatched examples in an epoch, none where no image can be shown under another instruction."""
    if not mismatches.allowed.any():
        return 0
    share = config.mismatched_share
    return round(len(mismatches.rows) * share / (1 - share))


def epoch_of(
    config: RewardModelConfig, examples: Examples, mismatches: Mismatches, epoch: int
) -> Iterator[RewardModelBatch]:
    """Every labelled turn once, in a new order, and some turns under another instruction as negatives."""
    rng = generator(config.seed, "reward", "epoch", epoch)
    training = mismatches.rows
    borrowed, others = mismatches.draw(mismatched_count(config, mismatches), rng)
    rows = np.concatenate([training, borrowed])
    instructions = [*examples.instructions_of(training), *others]
    positive = np.concatenate([examples.positive[training], np.zeros(len(borrowed), bool)])
    # under another task's instruction nothing is done yet
    progress = np.concatenate([examples.progress[training], np.zeros(len(borrowed), np.float32)])
    for chosen in epoch_batches(np.arange(len(rows)), config.batch_size, rng):
        at = rows[chosen]
        yield RewardModelBatch(
            shift_sequences(examples.images_seen(at), config.random_shift, rng),
            [instructions[i] for i in chosen.tolist()],
            examples.actions[at],
            positive[chosen],
            chosen < len(training),
            progress[chosen] if config.regresses else None,
            examples.past_of(at) if config.regresses else None,
        )


def undeniable(mismatches: Mismatches) -> str:
    """One line about the instructions under which no other task's image can be shown."""
    named = ", ".join(repr(text) for text in mismatches.never_denied)
    return (
        f"no other task's image is certainly wrong under {named}: these instructions get no mismatched negatives "
        "(docs/rewards.md, Mismatched instructions)"
    )


# --------------------------------------------------------------------------------------------------
# The reward model


def build_reward_model(config: RewardModelConfig, examples: Examples) -> TrainableRewardModel:
    """The reward model to train: a new one on the backbone, or the one that `config.start` names."""
    shape = examples.action_shape
    if config.start:
        reward_model = load_reward_model(config.start, config.device)
        reward_model.description.require(config, config.start)
        # one turn tells whether size and action fit
        reward_model_rows(reward_model, examples, np.arange(1))
        return reward_model
    if config.is_tiny:
        from vla_rl.rewards.process.tiny import TinyProcessRewardModel

        size = examples.images.shape[1]
        return TinyProcessRewardModel.create(config, examples.instructions, size, shape)
    from vla_rl.rewards.process.vlm import VlmProcessRewardModel

    return VlmProcessRewardModel.create(config, shape)


def reward_model_rows(
    reward_model: TrainableRewardModel,
    examples: Examples,
    rows: Rows,
    instructions: Sequence[str] | None = None,
) -> Float32[np.ndarray, " R"]:
    """Log-odds of these turns, under their own instruction or the given ones."""
    words = examples.instructions_of(rows) if instructions is None else list(instructions)
    actions = examples.actions[rows] if reward_model.sees_actions else None
    if reward_model.description.reads_past:
        return reward_model.log_odds(
            examples.images_seen(rows), words, None, examples.past_of(rows)
        )
    return reward_model.log_odds(examples.images_seen(rows), words, actions)


def validate(
    reward_model: TrainableRewardModel, examples: Examples, rows: Rows
) -> dict[str, float]:
    """Loss between the two answers, AUROC and calibration on held-out turns; nothing where there is one class.

    With head regression instead of calibration the mean absolute error of progress.
    """
    positive = examples.positive[rows]
    if not 0 < positive.sum() < len(positive):
        return {}
    odds = reward_model_rows(reward_model, examples, rows)
    if reward_model.description.reads_past:
        progress = examples.progress[rows]
        loss = (np.logaddexp(0.0, odds) - progress * odds).mean()
        return {
            "reward/validation_loss": float(loss),
            "reward/validation_auroc": area_under_roc(odds, positive),
            "reward/validation_absolute_error": float(np.abs(probability(odds) - progress).mean()),
        }
    loss = np.logaddexp(0.0, np.where(positive, -odds, odds)).mean()
    return {
        "reward/validation_loss": float(loss),
        "reward/validation_auroc": area_under_roc(odds, positive),
        "reward/validation_ece": calibration_error(probability(odds), positive),
    }


def run_of(reward_model: Path | str) -> Path | None:
    """The training run that a reward model belongs to, if it lies in one."""
    folder = reward_model_folder(reward_model)
    return folder.parent if (folder.parent / SPLIT_FILE).is_file() else None


def describe(examples: Examples, split: Split) -> str:
    """One line about the data."""
    known = known_rows(examples, split.training)
    return (
        f"{len(split.training)} training, {len(split.validation)} validation, {len(split.held_out)} held-out-task "
        f"episodes; {len(known)} labelled training turns, {int(examples.positive[known].sum())} of them positive"
    )
