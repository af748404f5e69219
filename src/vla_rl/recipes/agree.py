"""How far a policy agrees with logged episodes: `vla-rl agree CHECKPOINT --dataset FOLDER`.

read the log -> at each of its frames: what the policy would do, and how likely it finds what was done
-> for each task and each number of an action: how far they lie apart; where in an episode they part

Everything is said with an interval over episodes: the frames of one episode are no independent observations. A policy
that agrees need not succeed, and one that does not need not fail: from its first own step on a policy sees what the log
never saw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from vla_rl.config import PolicyConfig
from vla_rl.config.agreement import AgreementConfig
from vla_rl.data.logged import LoggedEpisodes, load_logged
from vla_rl.envs.registry import normalised_robots
from vla_rl.functional import mean_interval, wilson_interval
from vla_rl.policies.policy import PlaysSuites, Policy, decoded
from vla_rl.recipes.loading import load_without_suite
from vla_rl.runtime.devices import use_threads
from vla_rl.runtime.files import require_writable, write_json
from vla_rl.runtime.progress import progress

FORMAT = 1
LEAST_SPAN = 1e-9
"""A dimension that spans less stands still: differences in it are not divided by its span."""


@dataclass(frozen=True)
class Compared:
    """What the policy says of each of F logged frames."""

    apart: Float32[np.ndarray, "F C A"]
    """Policy's greedy action less the logged one, in the dataset's unit."""
    agrees: Bool[np.ndarray, " F"]
    """Whether no number of the turn is further away than the tolerance."""
    same: Float64[np.ndarray, " F"]
    """Share of the turn's tokens that are the logged ones."""
    log_prob: Float64[np.ndarray, " F"]
    """Mean log-probability of the logged tokens, nats a token."""


def agree(config: AgreementConfig) -> dict[str, Any]:
    """The comparison as JSON. UserError for a policy or a dataset that cannot be read, or that do not fit."""
    if config.json is not None:
        require_writable(config.json, "file", ".json")
    settings = PolicyConfig(
        kind=config.kind, unnorm_key=config.unnorm_key, base=config.base, dtype=config.dtype
    )
    policy = load_without_suite(config.checkpoint, settings)
    logged = load_logged(
        config.dataset,
        policy.action_chunk,
        action_size=policy.action_dim,
        camera=config.camera,
        image_size=config.image_size or (0 if policy.resizes_images else policy.image_size),
        image_fit=config.image_fit,
        episodes_per_task=config.episodes_per_task,
        outcome=config.outcome,
        normalised_robots=normalised_robots(),
    )
    with use_threads(1):
        found = compare(policy, logged, config.tolerance, config.batch_size)
    result = {
        "format": FORMAT,
        "checkpoint": str(config.checkpoint),
        "dataset": config.dataset,
        "outcome": config.outcome,
        "tolerance": config.tolerance,
        **summary(logged, found, config.parts),
    }
    if config.json is not None:
        write_json(config.json, result)
    return result


def compare(policy: Policy, logged: LoggedEpisodes, tolerance: float, batch: int) -> Compared:
    """Ask the policy about every frame, greedily, and about what was done there."""
    seen, parts = logged.seen, list[Compared]()
    span = np.maximum(seen.action_high - seen.action_low, LEAST_SPAN)
    with progress("comparing", total=len(seen)) as bar, torch.no_grad():
        for start in range(0, len(seen), batch):
            rows = np.arange(start, min(start + batch, len(seen)))
            observation = seen.observation(rows)
            words = observation.instructions
            done = encoded_log(policy, logged.chunks[rows], words)
            chosen = policy.act(observation, 0.0).tokens.cpu()
            likely = policy.evaluate(observation, done).log_probs.float().cpu()
            apart = decoded(policy, chosen, words) - logged.chunks[rows]
            # what the log did may lie between two bins; a difference within half a bin is none
            near = (np.abs(apart) <= tolerance * span) | same_bins(chosen, done, apart.shape)
            parts.append(
                Compared(
                    apart.astype(np.float32),
                    np.asarray(near.all(axis=(1, 2))),
                    (chosen == done).double().mean(1).numpy(),
                    likely.double().mean(1).numpy(),
                )
            )
            bar.advance(len(rows))
    return Compared(*(np.concatenate([getattr(p, n) for p in parts]) for n in vars(parts[0])))


def encoded_log(
    policy: Policy, chunks: Float32[np.ndarray, "N C A"], instructions: Sequence[str]
) -> Int64[Tensor, "N K"]:
    """The tokens of logged actions, of a policy of several suites each by its own statistics; on the CPU."""
    if isinstance(policy, PlaysSuites) and policy.plays_suites:
        return policy.encode_actions_for(chunks, instructions).cpu()
    return policy.encode_actions(chunks).cpu()


def same_bins(
    chosen: Int64[Tensor, "N K"], done: Int64[Tensor, "N K"], shape: tuple[int, ...]
) -> Bool[np.ndarray, "N C A"]:
    """Which numbers of which actions are the same token."""
    return (chosen == done).numpy().reshape(shape)


def summary(logged: LoggedEpisodes, found: Compared, parts: int) -> dict[str, Any]:
    """Of all episodes, of each task, each dimension, and each part of an episode."""
    seen = logged.seen
    span = seen.action_high - seen.action_low
    tasks: dict[str, Any] = {}
    for task in np.unique(seen.task_ids).tolist():
        own = [int(e) for e in logged.episodes if logged.task_of(int(e)) == task]
        tasks[seen.instructions[task]] = _of_episodes(logged, found, own, span, parts)
    every = [int(e) for e in logged.episodes]
    return {
        "overall": _of_episodes(logged, found, every, span, parts),
        "tasks": tasks,
    }


def _of_episodes(
    logged: LoggedEpisodes,
    found: Compared,
    episodes: Sequence[int],
    span: Float64[np.ndarray, " A"],
    parts: int,
) -> dict[str, Any]:
    rows = [logged.rows(episode) for episode in episodes]
    dims = range(found.apart.shape[2])
    return {
        "episodes": len(rows),
        "frames": sum(row.stop - row.start for row in rows),
        "agrees": share([float(found.agrees[row].mean()) for row in rows]),
        "whole_episodes_agree": _counted([bool(found.agrees[row].all()) for row in rows]),
        "same_tokens": share([float(found.same[row].mean()) for row in rows]),
        "log_prob": _mean([float(found.log_prob[row].mean()) for row in rows]),
        "parts_at": share([parting(found.agrees[row]) for row in rows]),
        "dimensions": [
            {
                "mean_apart": _mean([float(np.abs(found.apart[row, :, d]).mean()) for row in rows]),
                "bias": _mean([float(found.apart[row, :, d].mean()) for row in rows]),
                "span": float(span[d]),
            }
            for d in dims
        ],
        "along": along([found.agrees[row] for row in rows], parts),
    }


def parting(agrees: Bool[np.ndarray, " T"]) -> float:
    """The share of an episode that had passed when policy and log first differed; 1 where they never do."""
    return 1.0 if agrees.all() else float(np.argmin(agrees)) / len(agrees)


def along(episodes: Sequence[Bool[np.ndarray, " T"]], parts: int) -> list[dict[str, Any] | None]:
    """Agreement in each of `parts` equal parts of the episodes; None where no episode has a frame there."""
    found: list[dict[str, Any] | None] = []
    for part in range(parts):
        means = []
        for agrees in episodes:
            at = np.arange(len(agrees)) * parts // len(agrees) == part
            if at.any():
                means.append(float(agrees[at].mean()))
        found.append(share(means) if means else None)
    return found


def share(values: Sequence[float]) -> dict[str, Any]:
    """A mean of shares over episodes, with an interval that stays in 0 to 1.

    Student's interval is a point where all episodes are alike, which says too much: Wilson's is taken then where they
    are all 0 or all 1.
    """
    if min(values) == max(values) in (0.0, 1.0):
        low, high = wilson_interval(len(values) if values[0] else 0, len(values))
        return {"mean": values[0], "interval": [low, high]}
    found = _mean(values)
    inside = found["interval"]
    return found | {
        "interval": None if inside is None else [max(0.0, inside[0]), min(1.0, inside[1])]
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    interval = mean_interval(values)
    return {
        "mean": math.fsum(values) / len(values),
        "interval": None if interval is None else list(interval),
    }


def _counted(values: Sequence[bool]) -> dict[str, Any]:
    return {
        "count": sum(values),
        "interval": list(wilson_interval(sum(values), len(values))),
    }


def format_agreement(result: dict[str, Any]) -> str:
    """The result as text."""
    rows = [*result["tasks"].items(), ("all", result["overall"])]
    width = max(len(name) for name, _ in rows)
    lines = [
        f"tolerance {result['tolerance']:g} of each dimension's span; intervals are over episodes",
        f"{'':<{width}}  episodes  {'agrees':<22}{'same tokens':<22}{'nats a token':<24}{'parts at':<22}",
    ]
    for name, row in rows:
        likely = row["log_prob"]
        lines.append(
            f"{name:<{width}}  {row['episodes']:>8}  {_share(row['agrees']):<22}{_share(row['same_tokens']):<22}"
            f"{_number(likely):<24}{_share(row['parts_at']):<22}"
        )
    lines.append(
        "mean distance of each number of an action, in the dataset's unit, and of its span:"
    )
    for name, row in rows:
        cells = [
            f"{d['mean_apart']['mean']:.3g} ({d['mean_apart']['mean'] / max(d['span'], LEAST_SPAN):.1%})"
            for d in row["dimensions"]
        ]
        lines.append(f"{name:<{width}}  {'  '.join(cells)}")
    lines.append("agreement along the episode, from its beginning to its end:")
    for name, row in rows:
        cells = ["  -" if p is None else f"{p['mean']:.0%}" for p in row["along"]]
        lines.append(f"{name:<{width}}  {'  '.join(cells)}")
    return "\n".join(lines)


def _share(found: dict[str, Any]) -> str:
    inside = found["interval"]
    said = "" if inside is None else f" [{inside[0]:.1%}, {inside[1]:.1%}]"
    return f"{found['mean']:.1%}{said}"


def _number(found: dict[str, Any]) -> str:
    inside = found["interval"]
    said = "" if inside is None else f" [{inside[0]:.2f}, {inside[1]:.2f}]"
    return f"{found['mean']:.2f}{said}"
