"""Groups of whole episodes for an iteration, with others in the place of those that say nothing.

Which episodes an iteration has is settled before they are played, and each is played to its end: whoever took the first
that finish would learn from short episodes alone, and those are the successes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Int64

from vla_rl.distributed.world import SingleProcess, World
from vla_rl.policies.policy import Policy
from vla_rl.policies.shardable import playing
from vla_rl.rollout.buffer import FinishedEpisode
from vla_rl.rollout.collector import Collected, Collector
from vla_rl.rollout.engine import Engine
from vla_rl.rollout.together import of_all
from vla_rl.runtime.call_times import CallTimes
from vla_rl.types import EpisodeSpec, Rollout

DrawGroup = Callable[[int], list[EpisodeSpec]]
"""Episodes of a new group, of the given number."""


@dataclass(frozen=True)
class PlayedGroups:
    """What an iteration played."""

    collected: Collected
    """Of all processes; `finished` in the order of the episodes' numbers."""
    own: Collected
    """What this process played of it."""
    mixed: Int64[np.ndarray, " groups"]
    """Numbers of the groups in which some episodes succeeded and some failed."""
    played: int
    """Groups in all."""


class GroupPlay:
    """Plays an iteration's groups in rounds: first as many as are wanted, then in the place of those without a mixture.

    A round is at least as many groups as the environments have room for; what comes out more than is wanted is learned
    from as well. Every process takes the same decisions.
    """

    def __init__(
        self,
        collector: Collector,
        engine: Engine,
        policy: Policy,
        draw: DrawGroup,
        group: int,
        groups: int,
        extra: int,
        world: World = SingleProcess(),
    ) -> None:
        """`groups` of `group` episodes, and at most `extra` more in an iteration."""
        self.collector, self.engine, self.policy, self.draw = collector, engine, policy, draw
        self.group, self.groups, self.extra, self.world = group, groups, extra, world
        self._fill = -(-collector.shards.num_envs // group)

    def play(self, temperature: float, iteration: int) -> PlayedGroups:
        """The groups of an iteration, played with the present weights."""
        self.engine.renew(self.policy, iteration)
        rounds: list[Collected] = []
        finished: list[FinishedEpisode] = []
        played, due = 0, self.groups
        while due > 0:
            drawn = [self.draw(self.group) for _ in range(due)]
            with playing(self.policy):
                own = self.collector.collect_episodes(drawn, temperature, iteration)
            rounds += [] if own is None else [own]
            for ended in self.world.gather([] if own is None else own.finished):
                finished += ended
            played += due
            missing = self.groups - len(_mixed(finished))
            left = self.groups + self.extra - played
            due = min(left, max(missing, self._fill)) if missing > 0 else 0
        own = joined(rounds)
        whole = of_all(own, self.world)
        whole = replace(whole, finished=sorted(finished, key=lambda episode: episode.number))
        return PlayedGroups(whole, own, _mixed(finished), played)


def _mixed(finished: Sequence[FinishedEpisode]) -> Int64[np.ndarray, " groups"]:
    """The groups of which some episodes succeeded and some failed."""
    won = {episode.group for episode in finished if episode.success}
    lost = {episode.group for episode in finished if not episode.success}
    return np.array(sorted(won & lost), np.int64)


def joined(rounds: Sequence[Collected]) -> Collected:
    """Windows that were played one after the other in the same environments, each to its end, as one."""
    first, *others = rounds
    if not others:
        return first
    rollouts = [one.rollout for one in rounds]
    arrays = {
        field.name: np.concatenate([getattr(rollout, field.name) for rollout in rollouts])
        for field in fields(Rollout)
        if field.name not in ("next_values", "next_images", "shards")
        and isinstance(getattr(first.rollout, field.name), np.ndarray)
    }
    simulators = {name: CallTimes() for one in rounds for name in one.simulators}
    for one in rounds:
        for name, counted in one.simulators.items():
            simulators[name].merge(counted)
    return Collected(
        replace(first.rollout, **arrays),
        [episode for one in rounds for episode in one.finished],
        sum(one.simulator_steps for one in rounds),
        {name: sum(one.seconds[name] for one in rounds) for name in first.seconds},
        {name: sum(one.own_seconds[name] for one in rounds) for name in first.own_seconds},
        simulators,
    )
