"""What one process played as a part of what all have played."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from vla_rl.distributed.shards import in_order
from vla_rl.distributed.world import World
from vla_rl.rollout.collector import Collected
from vla_rl.types import Rollout

_BY_ENV = ("next_values", "shards")
_OWN = ("images", "next_images")


def of_all(collected: Collected, world: World) -> Collected:
    """The window of all processes, with this one's images alone; episodes in the order in which they ended."""
    if world.size == 1:
        return collected
    parts = world.gather(replace(collected, rollout=_without_images(collected.rollout)))
    first = sum(part.rollout.valid.shape[1] for part in parts[: world.rank])
    finished = in_order([part.finished for part in parts])
    envs = sum(part.rollout.valid.shape[1] for part in parts)
    return Collected(
        _joined(collected.rollout, [part.rollout for part in parts], first),
        sorted(finished, key=lambda episode: (episode.turn, episode.number % envs)),
        sum(part.simulator_steps for part in parts),
        {name: float(np.mean([p.seconds[name] for p in parts])) for name in collected.seconds},
        {name: sum(p.own_seconds[name] for p in parts) for name in collected.own_seconds},
        collected.simulators,
        collected.waited,
    )


def _without_images(rollout: Rollout) -> Rollout:
    turns, own = rollout.images.shape[:2]
    nothing = np.zeros((turns, own, 0, 0, 3), np.uint8)
    return replace(rollout, images=nothing, next_images=nothing[0])


def _joined(own: Rollout, parts: list[Rollout], first: int) -> Rollout:
    joined: dict[str, Any] = {"first": first}
    for field in fields(Rollout):
        if field.name in _OWN or not isinstance(getattr(own, field.name), np.ndarray):
            continue
        arrays = [getattr(part, field.name) for part in parts]
        joined[field.name] = np.concatenate(arrays, axis=0 if field.name in _BY_ENV else 1)
    return replace(own, **joined)
