"""Supervised fine-tuning on demonstrations: the policy that PPO starts from.

vla-rl sft --dataset runs/demos --out runs/sft

read the dataset -> actions to tokens -> the tiny policy from scratch, or a checkpoint
repeat: every frame once, its image shifted by a few pixels -> cross-entropy on the action tokens
-> <out>/policy in OpenVLA's format, <out>/metrics.jsonl with one line an epoch
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from vla_rl.algorithms.sft import SFT, epoch_batches, num_batches, random_shift
from vla_rl.config import ConfigError, SFTConfig, UserError
from vla_rl.config.policy import SuiteActions
from vla_rl.data.demonstrations import (
    ENVIRONMENT_FILE,
    Demonstrations,
    load_demonstrations,
)
from vla_rl.data.own_successes import Lessons, refuse_play, with_successes
from vla_rl.envs.defaults import suite_actions
from vla_rl.envs.registry import normalised_robots
from vla_rl.envs.suites import is_union
from vla_rl.policies.action_tokens import select_statistics
from vla_rl.policies.family import PolicyFamily
from vla_rl.policies.fast.actions import FastTokens
from vla_rl.policies.fast.fitting import fast_tokens
from vla_rl.policies.openvla.actions import ActsInTurns
from vla_rl.policies.openvla.policy import OpenVLAPolicy
from vla_rl.policies.policy import PlaysSuites, Policy
from vla_rl.policies.registry import POLICIES, load_policy, named_family
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.external import read_json
from vla_rl.runtime.files import require_writable, whole_folder, write_json
from vla_rl.runtime.progress import Reporter, note, progress
from vla_rl.runtime.run_folder import ENVIRONMENT_OF_RUN
from vla_rl.runtime.seeding import generator, seed_everything
from vla_rl.runtime.signals import StopRequest, graceful_stop
from vla_rl.training.epoch_state import EpochState, fingerprint, is_unfinished, open_epochs
from vla_rl.training.likelihood import warn_if_unlikely

SMALL_MODEL = 20_000_000
"""Weights up to which a model is small."""
GRIPPER_NOISE = 0.05
"""By which a command to a gripper may miss -1, 0 or 1."""
MOVING_GRIPPER = 0.1
"""Share of frames that miss them by more, from which the last number of an action is no such command."""
HELD_PICTURES = 4096
"""Of the held-out frames that are taken out of a dataset at a time."""
Evaluate = Callable[[Policy, int], float]
"""Measures success in simulation: called with the policy and the number of finished epochs."""


def fine_tune(config: SFTConfig, evaluate: Evaluate | None = None) -> Path:
    """Fine-tune on `config.dataset` and return the folder of the policy, `<out>/policy`.

    `evaluate`, where given, is called after the last epoch, and its result logged as success. The result depends on
    the configuration alone (bit for bit on one kind of CPU); one that was stopped or killed goes on with the same
    configuration. Raises UserError for a dataset that is missing, empty, damaged or of another action size, for an
    `out` that is in use, and when the loss diverges, and `Stopped`, a KeyboardInterrupt, where a signal ended it.
    """
    out = require_writable(Path(config.out), "folder")
    named_family(config.policy.kind)  # refuses an unknown one before anything is read
    is_unfinished(out, config, out / "policy")
    seed_everything(config.seed)
    environment = environment_of(Path(config.dataset))
    lessons = read_lessons(config, out)
    demos = lessons.seen
    suites = suites_played(environment)
    policy = build_policy(config, lessons, suites)
    tokens = encoded(policy, lessons, suites)
    training, validation = demos.split(
        config.validation_fraction, generator(config.seed, "sft", "validation")
    )
    steps = config.epochs * num_batches(len(training), config.batch_size)
    learner = SFT(policy, config, steps)
    note(
        f"{len(training)} training, {len(validation)} validation samples of {demos.num_episodes} episodes"
    )
    with (
        open_epochs(out, config, out / "policy") as run,
        graceful_stop("this batch") as stop,
        use_threads(torch_threads(policy)),
    ):
        state = EpochState(run, learner, "sft", {"tokens": fingerprint(tokens.cpu().numpy())})
        state.restore()
        with progress("fine-tuning", total=steps, start=learner.steps) as bar:
            for epoch in range(state.epoch, config.epochs + 1):
                # 1. every frame once, in a new order, its image shifted a little
                train_epoch(state, learner, demos, tokens, training, bar, stop)

                # 2. what the held-out episodes say
                asked = evaluate if epoch == config.epochs else None
                measure = partial(held_out_metrics, learner, demos, tokens, validation, asked)
                state.log_epoch(measure, stop)
        if environment is not None:
            write_json(out / ENVIRONMENT_OF_RUN, environment)
        with whole_folder(out / "policy") as folder:
            policy.save(folder)
        state.finish()
        stop.end(f"stopped by {stop.signal_name}; the fine-tuning is complete")
    note("  ".join(f"{k.removeprefix('sft/')} {v:.3g}" for k, v in state.logged.items()))
    return out / "policy"


def read_lessons(config: SFTConfig, out: Path) -> Lessons:
    """The demonstrations, and what the policy itself achieved where that is given.

    Pictures that do not fit into memory lie on the disk of `out`.
    """
    refuse_play(config.dataset)
    demos = load_demonstrations(
        config.dataset,
        camera=config.camera,
        image_size=config.image_size,
        image_fit=config.image_fit,
        scratch=next(folder for folder in out.absolute().parents if folder.is_dir()),
        normalised_robots=normalised_robots(),
        episodes_per_task=config.episodes_per_task,
    )
    return with_successes(demos, config.successes, config.action_chunk)


def environment_of(dataset: Path) -> dict[str, Any] | None:
    """Where the demonstrations were played, if the dataset says so: the policy is evaluated there, too."""
    path = dataset / ENVIRONMENT_FILE
    return read_json(path, inside=dataset) if path.is_file() else None


def suites_played(environment: Mapping[str, Any] | None) -> dict[str, SuiteActions]:
    """For each instruction what its suite asks of a policy, where the demonstrations are of several suites."""
    suite = str((environment or {}).get("suite", ""))
    return suite_actions(suite) if is_union(suite) else {}


def encoded(
    policy: Policy, lessons: Lessons, suites: Mapping[str, SuiteActions]
) -> Int64[Tensor, "F K"]:
    """The tokens of every frame, of several suites each by its own statistics."""
    demos = lessons.seen
    if not suites:
        return policy.encode_actions(lessons.chunks)
    if not isinstance(policy, PlaysSuites):
        raise UserError(
            f"the demonstrations are of several suites, which a policy of type {policy.kind!r} cannot play at once: "
            "fine-tune it on those of one suite"
        )
    policy.play_suites(suites)
    return policy.encode_actions_for(
        lessons.chunks, [demos.instructions[i] for i in demos.task_ids]
    )


def held_out_metrics(
    learner: SFT,
    demos: Demonstrations,
    tokens: Int64[Tensor, "F K"],
    validation: Int64[np.ndarray, " V"],
    evaluate: Evaluate | None,
) -> dict[str, float]:
    """Loss on the frames `validation`, if there are any, and success in simulation where it is asked for."""
    metrics: dict[str, float] = {}
    if len(validation):
        metrics["sft/validation_loss"] = validation_loss(learner, demos, tokens, validation)
    if evaluate is not None:
        metrics["sft/success"] = evaluate(learner.policy, learner.config.epochs)
    return metrics


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
    state: EpochState,
    learner: SFT,
    demos: Demonstrations,
    tokens: Int64[Tensor, "F K"],
    training: Int64[np.ndarray, " T"],
    bar: Reporter,
    stop: StopRequest,
) -> None:
    """What is left of a pass over the frames `training`; where it led to is saved."""
    rng = generator(learner.config.seed, "sft", "epoch", state.epoch)
    batches = epoch_batches(training, learner.config.batch_size, rng)
    for rows in state.left(batches, rng):
        seen = demos.observation(rows)
        shifted = random_shift(seen.images, learner.config.random_shift, rng)
        reported = learner.update(replace(seen, images=shifted), tokens[rows])
        bar.advance(1, epoch=state.epoch, loss=reported["loss"])
        state.done(reported, stop)
    state.save()


def torch_threads(policy: Policy) -> int:
    """Threads for torch: one for a small model, else all cores (0).

    Layers of a small model are too short to share: measured on two cores, the second thread gains nothing on an idle
    machine and makes a step ten times slower beside another busy process. One thread also gives the same result
    on any number of cores.
    """
    parameters = policy.policy_parameters()
    small = sum(parameter.numel() for parameter in parameters) < SMALL_MODEL
    return 1 if small and parameters[0].device.type == "cpu" else 0


def build_policy(
    config: SFTConfig, lessons: Lessons, suites: Mapping[str, SuiteActions] | None = None
) -> Policy:
    """The tiny policy for these demonstrations, or the checkpoint with their action statistics, each robot's its own.

    Raises UserError if the checkpoint plays actions of another size.
    """
    demos = lessons.seen
    if suites:
        statistics = suite_statistics(demos, suites)
    else:
        statistics = {Path(config.dataset).resolve().name: dataset_statistics(demos)}
    action_dim, folder = demos.actions.shape[1], config.policy.checkpoint
    if not folder:
        family = named_family(config.policy.kind)
        return family.create(
            demos.image_size, demos.instructions, statistics, action_dim, config.action_chunk,
            config.policy, config.seed, demos.image_fit,
            **written_in(config, family, config.policy.kind, lessons.chunks, statistics),
        )  # fmt: skip
    loaded = load_policy(folder, config.policy, seed=config.seed)
    # 0: a model that has not learned to act yet
    if loaded.action_dim not in (0, action_dim):
        raise UserError(
            f"{config.dataset}: expected actions of size {loaded.action_dim}, as the policy in {folder} plays them, "
            f"got {action_dim}. Take a dataset of the same robot, or train from scratch (empty policy.checkpoint)."
        )
    _require_a_gripper(loaded, demos, config.dataset)
    may_see = loaded.resizes_images or loaded.image_size == demos.image_size
    if may_see and not suites:  # of several suites, each has statistics of its own
        warn_if_unlikely(loaded, demos, folder)
    gripper = loaded.description.model.gripper if isinstance(loaded, OpenVLAPolicy) else "as-is"
    written = written_in(
        config, POLICIES[loaded.kind], loaded.kind, lessons.chunks, statistics, gripper
    )
    policy = loaded.with_actions_of(statistics, config.action_chunk, demos.image_fit, **written)
    if not policy.resizes_images and policy.image_size != demos.image_size:
        raise UserError(
            f"{config.dataset}: expected images of {policy.image_size} px, as the policy in {folder} sees them, got "
            f"{demos.image_size} px. Give --image-size {policy.image_size}."
        )
    return policy


def written_in(
    config: SFTConfig,
    family: PolicyFamily,
    kind: str,
    actions: Float32[np.ndarray, "F C A"],
    statistics: Mapping[str, Any],
    gripper: Literal["as-is", "openvla"] = "as-is",
) -> dict[str, FastTokens]:
    """What the policy is told about how it writes actions; nothing where that is not by FAST tokens.

    Raises ConfigError for a class of policies that cannot write them, and for several suites at once.
    """
    if config.actions != "fast":
        return {}
    if not family.fast:
        raise ConfigError(
            f"--actions fast: a policy of type {kind!r} writes a token for each number alone; FAST tokens are for "
            "policy.kind openvla, which decides one token after the other"
        )
    if len(statistics) > 1:
        raise ConfigError(
            "--actions fast: FAST tokens are fitted to one suite's actions, and the demonstrations are of several: "
            "fine-tune on one of them"
        )
    found = fast_tokens(actions, select_statistics(statistics)[1], config.fast, gripper)
    made = f"{found.end} FAST codes, at most {found.most - 1} and an end token a turn"
    note(f"{made}, where each number apart takes {actions[0].size}")
    return {"fast": found}


def _require_a_gripper(policy: Policy, demos: Demonstrations, dataset: str) -> None:
    """UserError where the policy can only open and close what the demonstrations move to places between."""
    if not isinstance(policy, ActsInTurns) or policy.action_dim == 0:  # has not learned to act yet
        return
    if policy.turn_actions.gripper != "openvla":
        return
    last = demos.actions[:, -1]
    between = float((np.abs(last - np.rint(last)) > GRIPPER_NOISE).mean())
    if between > MOVING_GRIPPER:
        raise UserError(
            f"{dataset}: the policy takes the last number of an action for OpenVLA's gripper, which is open or closed, "
            f"and in {between:.0%} of the frames it is neither: give --policy.gripper as-is"
        )


def suite_statistics(
    demos: Demonstrations, suites: Mapping[str, SuiteActions]
) -> dict[str, dict[str, Any]]:
    """An entry of dataset_statistics.json for each robot's frames: its actions span [-1, 1] in whichever suite.

    UserError for an instruction that belongs to none of the suites.
    """
    strange = [text for text in demos.instructions if text not in suites]
    if strange:
        raise UserError(
            f"the dataset's meta/environment.json names suites that do not say {strange[0]!r}, and an episode does: it "
            "belongs to another dataset"
        )
    found: dict[str, dict[str, Any]] = {}
    for robot, size in {one.robot: one.size for one in suites.values()}.items():
        tasks = [i for i, text in enumerate(demos.instructions) if suites[text].robot == robot]
        rows = np.flatnonzero(np.isin(demos.task_ids, tasks))
        if len(rows):
            found[robot] = dataset_statistics(demos, rows, size)
    return found


def dataset_statistics(
    demos: Demonstrations, rows: Int64[np.ndarray, " n"] | None = None, size: int | None = None
) -> dict[str, Any]:
    """One dataset's entry of dataset_statistics.json: q01 and q99 are what the action tokens -1 and +1 stand for.

    rows: of its frames, if not all. size: of the robot's actions, where others' are longer.
    """
    rows = np.arange(len(demos)) if rows is None else rows
    actions = demos.actions[rows, :size].astype(np.float64)
    action = {
        "mean": actions.mean(axis=0).tolist(),
        "std": actions.std(axis=0).tolist(),
        "min": actions.min(axis=0).tolist(),
        "max": actions.max(axis=0).tolist(),
        "q01": demos.action_low[:size].tolist(),
        "q99": demos.action_high[:size].tolist(),
        "mask": [True] * actions.shape[1],
    }
    return {
        "action": action,
        "num_transitions": len(rows),
        "num_trajectories": len(np.unique(demos.episode_ids[rows])),
    }
