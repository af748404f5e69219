"""What one process played as a part of what all have played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from vla_rl.distributed.shards import Shards, in_order
from vla_rl.distributed.world import World
from vla_rl.rollout.buffer import EMPTY
from vla_rl.rollout.collector import Collected
from vla_rl.types import Rollout

_BY_ENV = ("next_values", "shards")
_OWN = ("images", "next_images")


def of_all(collected: Collected, world: World) -> Collected:
    """The window of all processes, with this one's images alone; episodes in the order in which they ended."""
    if world.size == 1:
        return collected
    parts = world.gather(replace(collected, rollout=_without_images(collected.rollout)))
    turns = max(len(part.rollout.valid) for part in parts)  # not alike where episodes end a window
    collected = replace(collected, rollout=_as_long(collected.rollout, turns))
    parts = [replace(part, rollout=_as_long(part.rollout, turns)) for part in parts]
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


def _as_long(rollout: Rollout, turns: int) -> Rollout:
    """The window with turns behind it in which nobody plays, `turns` in all."""
    more = turns - len(rollout.valid)
    if not more:
        return rollout
    longer: dict[str, Any] = {}
    for field in fields(Rollout):
        array = getattr(rollout, field.name)
        if isinstance(array, np.ndarray) and field.name not in (*_BY_ENV, "next_images"):
            nothing = np.full((more, *array.shape[1:]), EMPTY.get(field.name, 0), array.dtype)
            longer[field.name] = np.concatenate([array, nothing])
    return replace(rollout, **longer)


def _joined(own: Rollout, parts: list[Rollout], first: int) -> Rollout:
    joined: dict[str, Any] = {"first": first}
    for field in fields(Rollout):
        if field.name in _OWN or not isinstance(getattr(own, field.name), np.ndarray):
            continue
        arrays = [getattr(part, field.name) for part in parts]
        joined[field.name] = np.concatenate(arrays, axis=0 if field.name in _BY_ENV else 1)
    return replace(own, **joined)


def whole_state(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state of what the collectors of all processes gave, in their order."""
    lists = {
        key: in_order([part[key] for part in parts])
        for key in ("slots", "starts", "numbers", "started")
    }
    return lists | {"listed": parts[0]["listed"]}


def own_state(whole: Mapping[str, Any], shards: Shards) -> dict[str, Any]:
    """What one process loads of such a state, or of one that was saved before there were several."""
    rows = whole["slots"]
    if len(rows) != shards.num_envs:
        raise ValueError(f"saved with {len(rows)} environments, now there are {shards.num_envs}")
    mine = slice(shards.own_envs.start, shards.own_envs.stop)
    state = dict(whole) | {"slots": rows[mine]}
    for key in ("starts", "numbers"):
        if key in whole:
            state[key] = whole[key][mine]
    if "listed" in whole:
        state["started"] = whole["started"][mine]
    return state
