"""Preferences between logged episodes: `vla-rl prefer --dataset runs/play --policy.checkpoint runs/sft`.

read the log -> rank its episodes, by success and by what a process reward model thinks of them
             -> pair better with worse, among episodes of one task
repeat: every pair once -> the chosen episode becomes likelier than the rejected one, against the policy at the start
-> <out>/policy, <out>/metrics.jsonl with one line an epoch

No simulator is asked. What was logged is all that is known: a log of another policy than the one that learns says less
the more they differ.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from vla_rl.algorithms.logged_preferences import LoggedTPO, logged_preferences, pairs_among
from vla_rl.algorithms.sft import epoch_batches, num_batches
from vla_rl.config import LabelConfig, UserError
from vla_rl.config.preference import PreferConfig
from vla_rl.config.serialize import to_json
from vla_rl.data.logged import LoggedEpisodes, load_logged
from vla_rl.envs.registry import normalised_robots
from vla_rl.policies.policy import Policy
from vla_rl.recipes.agree import encoded_log
from vla_rl.recipes.loading import load_without_suite
from vla_rl.recipes.sft import torch_threads
from vla_rl.recipes.train_reward import reward_model_rows
from vla_rl.rewards.process.examples import build_examples
from vla_rl.rewards.process.loading import load_reward_model
from vla_rl.rewards.process.model import probability
from vla_rl.rewards.trajectory_files import load_trajectories
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.files import require_writable, whole_folder, write_json
from vla_rl.runtime.locate import locate_policy
from vla_rl.runtime.progress import note, progress
from vla_rl.runtime.run_folder import ENVIRONMENT_OF_RUN
from vla_rl.runtime.seeding import generator, seed_everything
from vla_rl.runtime.signals import graceful_stop
from vla_rl.training.epoch_state import EpochState, fingerprint, is_unfinished, open_epochs


def prefer(config: PreferConfig) -> Path:
    """Improve `config.policy.checkpoint` by the pairs of `config.dataset`; returns the folder of the policy.

    One that was stopped or killed goes on with the same configuration. Raises UserError for a log that cannot be read,
    that does not fit the policy or that makes no pair, and `Stopped` where a signal ended it.
    """
    out = require_writable(Path(config.out), "folder")
    if not config.policy.checkpoint:
        raise UserError("there is no policy to improve: give one with --policy.checkpoint")
    is_unfinished(out, config, out / "policy")
    seed_everything(config.seed)
    policy = load_without_suite(config.policy.checkpoint, config.policy)
    logged = read_log(config, policy)
    training, held_out = make_pairs(logged, scores_of(logged, config), config)
    chosen, rejected = (np.concatenate(both) for both in zip(training, held_out, strict=True))
    seen = logged.seen
    observation = seen.observation(np.arange(len(seen)))
    tokens = encoded_log(policy, logged.chunks, observation.instructions)
    preferences = logged_preferences(observation, tokens, seen.episode_ids, chosen, rejected)
    learned, kept = np.arange(len(training[0])), np.arange(len(training[0]), len(chosen))
    note(
        f"{len(learned)} pairs to learn from, {len(kept)} kept apart, of {len(logged.episodes)} episodes"
    )
    steps = config.epochs * num_batches(len(learned), config.minibatch)
    with use_threads(torch_threads(policy)):
        learner = LoggedTPO(policy, preferences, config, steps)
        with open_epochs(out, config, out / "policy") as run, graceful_stop("this step") as stop:
            data = {"tokens": fingerprint(tokens.numpy(), chosen, rejected)}
            state = EpochState(run, learner, "prefer", data)
            state.restore()
            with progress("preferring", total=steps, start=learner.steps) as bar:
                for epoch in range(state.epoch, config.epochs + 1):
                    # 1. every pair once, in a new order
                    rng = generator(config.seed, "prefer", "epoch", epoch)
                    for pairs in state.left(epoch_batches(learned, config.minibatch, rng), rng):
                        reported = learner.update(pairs)
                        bar.advance(1, epoch=epoch, loss=reported["policy"])
                        state.done(reported, stop)
                    state.save()

                    # 2. what the pairs say that were kept apart
                    state.log_epoch(lambda: apart_metrics(learner, kept), stop)
            _, trained_in = locate_policy(Path(config.policy.checkpoint))
            if trained_in is not None:
                write_json(out / ENVIRONMENT_OF_RUN, to_json(trained_in))
            with whole_folder(out / "policy") as folder:
                policy.save(folder)
            state.finish()
            stop.end(f"stopped by {stop.signal_name}; the training is complete")
    note("  ".join(f"{k.removeprefix('prefer/')} {v:.3g}" for k, v in state.logged.items()))
    return out / "policy"


def read_log(config: PreferConfig, policy: Policy) -> LoggedEpisodes:
    """The logged episodes, as the policy sees them."""
    return load_logged(
        config.dataset,
        policy.action_chunk,
        action_size=policy.action_dim,
        camera=config.camera,
        image_size=config.image_size or (0 if policy.resizes_images else policy.image_size),
        image_fit=config.image_fit,
        normalised_robots=normalised_robots(),
    )


def scores_of(logged: LoggedEpisodes, config: PreferConfig) -> Float64[np.ndarray, " E"]:
    """By what the episodes are ranked. UserError where success counts and the log does not say it."""
    scores = np.zeros(len(logged.episodes))
    if config.success_weight:
        if logged.success is None:
            raise UserError(
                f"{config.dataset} does not say how its episodes ended: expected the feature 'next.success', or rank "
                "them by a reward model alone (--reward-model, --success-weight 0)"
            )
        scores += config.success_weight * logged.success
    if config.reward_model and config.reward_weight:
        scores += config.reward_weight * mean_rewards(config)
    return scores


def mean_rewards(config: PreferConfig) -> Float64[np.ndarray, " E"]:
    """The reward model's mean score over the turns of every episode of the log."""
    model = load_reward_model(config.reward_model)
    description = model.description
    episodes = load_trajectories(
        config.dataset,
        action_chunk=description.action_chunk,
        camera=config.camera,
        image_size=description.image_size,
        image_fit=config.image_fit,
    )
    found = []
    with progress("scoring", total=len(episodes)) as bar:
        for episode in episodes:
            examples = build_examples(
                [episode],
                LabelConfig(),
                history=description.history,
                reads_actions=description.reads_actions,
            )
            odds = reward_model_rows(model, examples, np.arange(len(episode)))
            found.append(float(probability(odds).mean()))
            bar.advance(1)
    return np.array(found)


Pairs = tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]
"""Chosen and rejected episodes, by their numbers."""


def make_pairs(
    logged: LoggedEpisodes, scores: Float64[np.ndarray, " E"], config: PreferConfig
) -> tuple[Pairs, Pairs]:
    """Pairs to learn from, and of the episodes that are kept apart. UserError where there is none to learn from."""
    tasks = np.array([logged.task_of(int(episode)) for episode in logged.episodes])
    groups = tasks
    if config.compare == "start":
        if (logged.initial_states < 0).any():
            raise UserError(
                f"{config.dataset} does not say from which initial states its episodes begin: compare those of a task "
                "(--compare task)"
            )
        starts = np.stack([tasks, logged.initial_states], 1)
        groups = np.unique(starts, axis=0, return_inverse=True)[1].reshape(-1)
    rng = generator(config.seed, "prefer", "validation")
    _, held_out = logged.seen.split(config.validation_fraction, rng)
    apart: Bool[np.ndarray, " E"] = np.isin(
        logged.episodes, np.unique(logged.seen.episode_ids[held_out])
    )
    training, kept = (
        pairs_among(scores, groups, logged.episodes, which, config.pairs)
        for which in (~apart, apart)
    )
    if not len(training[0]):
        won = "" if logged.success is None else f" ({int(logged.success.sum())} successes)"
        raise UserError(
            f"{config.dataset}: of {len(logged.episodes)} episodes{won} no two that may be compared differ: take a log "
            "with successes and failures of the same task"
        )
    return training, kept


def apart_metrics(learner: LoggedTPO, kept: Int64[np.ndarray, " p"]) -> dict[str, float]:
    """How the pairs that were kept apart are told apart; nothing where there are none."""
    if not len(kept):
        return {}
    return {f"prefer/held_out_{name}": value for name, value in learner.told_apart(kept).items()}
