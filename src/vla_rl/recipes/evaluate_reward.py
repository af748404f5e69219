"""How good a reward model is: on episodes it was not trained on, on new tasks, and on instructions that do not fit.

vla-rl reward eval runs/reward
vla-rl reward score runs/reward runs/play --episode 3 --out reward.png

seen_tasks       the held-out episodes of the tasks that were trained on (or all episodes of other datasets)
held_out_tasks   all episodes of the tasks that training left out
mismatched       the positive turns of the seen tasks, under their own instruction and under those that they deny
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vla_rl.config import (
    LabelConfig,
    RewardEvalConfig,
    RewardModelConfig,
    RewardScoreConfig,
    UserError,
)
from vla_rl.functional import (
    Ranking,
    Reliability,
    area_under_roc,
    average_precision,
    calibration_error,
    pairwise_ranking,
    rank_correlation,
    reliability,
)
from vla_rl.recipes.train_reward import read_trajectories, reward_model_rows, run_of
from vla_rl.report.figures.reward_model import (
    ScoredEpisode,
    draw_reliability,
    draw_scores,
    film_scores,
)
from vla_rl.report.figures.saving import require_figure
from vla_rl.rewards.process.examples import Examples, Rows, build_examples, require_both_classes
from vla_rl.rewards.process.labels import label
from vla_rl.rewards.process.loading import load_reward_model, reward_model_folder
from vla_rl.rewards.process.mismatched import Mismatches
from vla_rl.rewards.process.model import TrainableRewardModel, probability
from vla_rl.rewards.process.robot_signals import robot_signals
from vla_rl.rewards.process.splits import split_of
from vla_rl.rewards.trajectory_files import load_trajectories
from vla_rl.runtime.files import require_writable, write_json
from vla_rl.runtime.provenance import versions
from vla_rl.runtime.run_folder import read_config
from vla_rl.runtime.seeding import generator

FORMAT = 1
Result = dict[str, Any]


def evaluate_reward(config: RewardEvalConfig) -> Result:
    """Measure a reward model; writes evaluation.json and reliability.png into `config.out` and returns the former.

    Raises UserError where the reward model is none, its training data have changed, or there is one class only.
    """
    folder = reward_model_folder(config.reward_model)
    out = require_writable(
        Path(config.out) if config.out else folder.parent / "evaluation", "folder"
    )
    reward_model = load_reward_model(folder)
    material, regresses = _material(config, reward_model), reward_model.description.reads_past
    seen = material.examples.rows_of(material.seen)
    odds = reward_model_rows(reward_model, material.examples, seen)
    known = material.examples.known[seen]
    positive = material.examples.positive[seen]
    require_both_classes(positive[known], "episodes to measure on")
    result: Result = {
        "format": FORMAT,
        "reward_model": str(folder),
        "datasets": list(material.datasets),
        "held_out_of_training": not config.datasets,
        "seen_tasks": measure(material.examples, seen, odds, config, regresses),
        "held_out_tasks": None,
        "mismatched": mismatched(reward_model, material.examples, seen, odds, config),
        "versions": versions(),
    }
    diagrams = {"seen tasks": _diagram(reward_model, material.examples, seen, odds, config.bins)}
    if len(material.held_out):
        rows = material.examples.rows_of(material.held_out)
        odds = reward_model_rows(reward_model, material.examples, rows)
        result["held_out_tasks"] = measure(material.examples, rows, odds, config, regresses)
        diagrams["held-out tasks"] = _diagram(
            reward_model, material.examples, rows, odds, config.bins
        )
    _write(out, result, diagrams)
    return result


def _diagram(
    reward_model: TrainableRewardModel,
    examples: Examples,
    rows: Rows,
    odds: Float32[np.ndarray, " R"],
    bins: int,
) -> Reliability:
    """What was predicted against what is so: the share of positives, or with head regression progress."""
    if reward_model.description.reads_past:
        return reliability(probability(odds), examples.progress[rows], bins)
    known = examples.known[rows]
    return reliability(probability(odds[known]), examples.positive[rows][known], bins)


@dataclass(frozen=True)
class _Material:
    examples: Examples
    datasets: tuple[str, ...]
    seen: Rows  # episodes
    held_out: Rows


def _material(config: RewardEvalConfig, reward_model: TrainableRewardModel) -> _Material:
    """The episodes to measure on, labelled and shown as in training."""
    run = run_of(config.reward_model)
    if run is None and not config.datasets:
        raise UserError(
            f"{config.reward_model} is a reward model without its training run, so its held-out episodes are not "
            "known: name --datasets to measure on"
        )
    training = training_config(config.reward_model, reward_model)
    if config.datasets:
        training = replace(training, datasets=config.datasets)
    trajectories = read_trajectories(training)
    description = reward_model.description
    examples = build_examples(
        trajectories, training.labels, description.history, description.reads_actions
    )
    everything = np.arange(len(trajectories))
    if config.datasets or run is None:
        return _Material(examples, config.datasets, everything, everything[:0])
    split = split_of(run, trajectories)
    if not len(split.validation):
        raise UserError(
            f"{run} held no episode out (reward.validation_fraction): name --datasets to measure on"
        )
    return _Material(examples, training.datasets, split.validation, split.held_out)


def training_config(
    reward_model_path: str, reward_model: TrainableRewardModel
) -> RewardModelConfig:
    """What the reward model was trained with; what its description tells where the run is not there."""
    run = run_of(reward_model_path)
    if run is not None:
        return read_config(run, RewardModelConfig)
    description = reward_model.description
    return RewardModelConfig(
        head=description.head,
        history=description.history,
        sees_actions=description.sees_actions,
        action_chunk=description.action_chunk,
        image_size=description.image_size,
    ).resolved()


# --------------------------------------------------------------------------------------------------
# Measures


def measure(
    examples: Examples,
    rows: Rows,
    odds: Float32[np.ndarray, " R"],
    config: RewardEvalConfig,
    regresses: bool = False,
) -> Result:
    """Everything about these turns, which are those of whole episodes; None where a class is missing.

    `regresses`: the score is progress, and calibrated if it is right about that.
    """
    known, positive = examples.known[rows], examples.positive[rows]
    episodes = np.unique(examples.episode[rows])
    chances = probability(odds)
    result: Result = {
        "episodes": len(episodes),
        "successes": int(examples.success[episodes].sum()),
        "turns": int(known.sum()),
        "positives": int(positive[known].sum()),
    }
    result |= _separation(odds[known], positive[known], examples.episode[rows][known], config)
    if known.any():
        right = examples.progress[rows] if regresses else positive
        result["calibration_error"] = calibration_error(chances[known], right[known], config.bins)
        result["mean_probability"] = float(chances[known].mean())
    result["ranking"] = {
        "mean": _ranking(examples, rows, chances, lambda values: float(values.mean())),
        "last": _ranking(examples, rows, chances, lambda values: float(values[-1])),
    }
    result["progress_correlation"] = _progress(examples, rows, chances)
    result["progress"] = progress_measures(examples, rows, chances, config.bins)
    tasks = [t.task for t in examples.trajectories]
    result["tasks"] = {}
    for task in sorted({tasks[i] for i in episodes}):
        own = np.array([tasks[i] == task for i in examples.episode[rows].tolist()]) & known
        part = positive[own]
        both = 0 < part.sum() < len(part)
        result["tasks"][task] = {
            "turns": len(part),
            "positives": int(part.sum()),
            "auroc": area_under_roc(odds[own], part) if both else None,
        }
    return result


def _separation(
    odds: Float32[np.ndarray, " R"],
    positive: Bool[np.ndarray, " R"],
    episode: Int64[np.ndarray, " R"],
    config: RewardEvalConfig,
) -> Result:
    """AUROC with its bootstrap interval over episodes, and average precision with what chance reaches."""
    if not 0 < positive.sum() < len(positive):
        return {"auroc": None, "auroc_interval": None, "average_precision": None, "chance": None}
    return {
        "auroc": area_under_roc(odds, positive),
        "auroc_interval": bootstrap_interval(odds, positive, episode, config),
        "average_precision": average_precision(odds, positive),
        "chance": float(positive.mean()),
    }


def bootstrap_interval(
    odds: Float32[np.ndarray, " R"],
    positive: Bool[np.ndarray, " R"],
    episode: Int64[np.ndarray, " R"],
    config: RewardEvalConfig,
) -> list[float] | None:
    """95 % percentile interval of the AUROC over resampled whole episodes: turns of one are not independent."""
    rng = generator(config.seed, "reward", "bootstrap")
    rows = [np.flatnonzero(episode == i) for i in np.unique(episode)]
    areas = []
    for _ in range(config.resamples):
        drawn = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        if 0 < positive[drawn].sum() < len(drawn):
            areas.append(area_under_roc(odds[drawn], positive[drawn]))
    return [float(q) for q in np.quantile(areas, [0.025, 0.975])] if areas else None


def _ranking(
    examples: Examples,
    rows: Rows,
    chances: Float32[np.ndarray, " R"],
    score: Callable[[Float32[np.ndarray, " T"]], float],
) -> Result:
    """Pairs of a success and a failure of one task: how often the success scores higher."""
    episodes = examples.episode[rows]
    scores = {int(i): score(chances[episodes == i]) for i in np.unique(episodes)}
    right, pairs = 0.0, 0
    for text in {examples.instructions[i] for i in scores}:
        groups: tuple[list[float], list[float]] = [], []
        for i, value in scores.items():
            if examples.instructions[i] == text:
                groups[int(examples.success[i])].append(value)
        found = pairwise_ranking(np.array(groups[1]), np.array(groups[0]))
        right, pairs = right + found.right, pairs + found.pairs
    total = Ranking(right, pairs)
    return {"accuracy": _number(total.accuracy), "pairs": pairs}


def _progress(examples: Examples, rows: Rows, chances: Float32[np.ndarray, " R"]) -> Result:
    """Spearman correlation of the reward model's probability with time, in each success of three turns or more."""
    episodes = examples.episode[rows]
    found = []
    for i in np.unique(episodes):
        values = chances[episodes == i]
        if examples.success[i] and len(values) >= 3:
            found.append(rank_correlation(values, np.arange(len(values), dtype=np.float64)))
    known = [value for value in found if math.isfinite(value)]
    return {
        "mean": float(np.mean(known)) if known else None,
        "share_above_0.5": float(np.mean(np.array(known) > 0.5)) if known else None,
        "episodes": len(known),
    }


def progress_measures(
    examples: Examples, rows: Rows, chances: Float32[np.ndarray, " R"], bins: int
) -> Result:
    """How near the score is to progress, whatever the reward model was taught: that of labels.scheme segments.

    mean_absolute_error, rank_correlation (Spearman's, over all turns, failures among them) and calibration_error: the
    mean over bins of the score of its distance from the mean progress there.
    """
    scheme = LabelConfig(scheme="segments")
    truth = np.zeros(len(examples), np.float32)
    for i in np.unique(examples.episode[rows]):
        trajectory = examples.trajectories[i]
        found = label(trajectory, scheme, robot_signals(trajectory.robot))
        truth[examples.episode == i] = found.progress
    progress = truth[rows]
    return {
        "mean_absolute_error": float(np.abs(chances - progress).mean()),
        "rank_correlation": _number(rank_correlation(chances, progress)),
        "calibration_error": calibration_error(chances, progress, bins),
    }


def mismatched(
    reward_model: TrainableRewardModel,
    examples: Examples,
    rows: Rows,
    odds: Float32[np.ndarray, " R"],
    config: RewardEvalConfig,
) -> Result | None:
    """The positive turns under instructions that they deny, against their own; None where there is no such pair.

    `auroc` compares all matched with all mismatched scores, `paired` each image with itself. Pairs in which the image
    could be positive as well are left out, as in training: see rewards/process/mismatched.py.
    """
    chosen = np.flatnonzero(examples.positive[rows] & examples.known[rows])
    pairs, texts = Mismatches(examples, rows[chosen], examples.instructions).pairs()
    if not len(pairs):
        return None
    place = {row: i for i, row in enumerate(rows.tolist())}
    at = np.array([place[row] for row in pairs.tolist()])
    chosen = np.unique(at)
    others = reward_model_rows(reward_model, examples, pairs, texts)
    scores = np.concatenate([odds[chosen], others])
    matched = np.arange(len(scores)) < len(chosen)
    episode = np.concatenate([examples.episode[rows[chosen]], examples.episode[pairs]])
    right = (odds[at] > others).sum() + 0.5 * (odds[at] == others).sum()
    return {
        "turns": len(chosen),
        "pairs": len(pairs),
        "auroc": area_under_roc(scores, matched),
        "auroc_interval": bootstrap_interval(scores, matched, episode, config),
        "paired": float(right / len(pairs)),
        "mean_probability_matched": float(probability(odds[chosen]).mean()),
        "mean_probability_mismatched": float(probability(others).mean()),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write(folder: Path, result: Result, diagrams: dict[str, Reliability]) -> None:
    for part, found in zip(("seen_tasks", "held_out_tasks"), diagrams.values(), strict=False):
        result[part]["reliability"] = {
            "edges": found.edges.tolist(),
            "counts": found.counts.tolist(),
            "predicted": [_number(v) for v in found.predicted.tolist()],
            "observed": [_number(v) for v in found.observed.tolist()],
        }
    write_json(folder / "evaluation.json", result)
    draw_reliability(folder / "reliability.png", diagrams)


# --------------------------------------------------------------------------------------------------
# One episode


def score_reward(config: RewardScoreConfig) -> Path:
    """Draw the reward model's probability over one episode above its images; returns the file."""
    out = require_figure(Path(config.out), "mp4")
    reward_model = load_reward_model(config.reward_model)
    description = reward_model.description
    trained = training_config(config.reward_model, reward_model)
    trajectories = load_trajectories(
        config.dataset,
        action_chunk=description.action_chunk,
        camera=trained.camera,
        image_size=description.image_size,
        image_fit=trained.image_fit,
    )
    if config.episode >= len(trajectories):
        raise UserError(
            f"{config.dataset} has {len(trajectories)} episodes, numbered from 0: there is no episode {config.episode}"
        )
    trajectory = trajectories[config.episode]
    labels_config: LabelConfig = trained.labels
    examples = build_examples(
        [trajectory], labels_config, description.history, description.reads_actions
    )
    text = config.instruction or trajectory.instruction
    rows = np.arange(len(trajectory))
    odds = reward_model_rows(reward_model, examples, rows, [text] * len(rows))
    labels = label(trajectory, labels_config, robot_signals(trajectory.robot))
    scored_episode = ScoredEpisode(
        title=f"{trajectory.task}, initial state {trajectory.initial_state}, {trajectory.source}: "
        + ("success" if trajectory.success else "failure"),
        question=description.question(text),
        images=trajectory.images,
        probabilities=probability(odds),
        seconds=rows * trajectory.turn_seconds,
        positive=labels.positive if text == trajectory.instruction else np.zeros(len(rows), bool),
        key_frames=labels.key_frames,
        milestones=labels.milestones,
    )
    draw = film_scores if out.suffix.lower() == ".mp4" else draw_scores
    draw(out, scored_episode)
    return out
