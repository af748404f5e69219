"""A window of play as a small discrete-event simulation: the collector's two groups, simulators, cores, engine.

It does what `rollout.collector.Collector.collect` does, in the same order, with times in place of work: while one group
simulates, the policy infers for the other. Simulator processes do their work in the order in which it comes; whoever
computes on the CPU shares its cores evenly with the others; an engine on a device answers one batch after the other.
Nothing is random: the same numbers give the same times.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import lru_cache

from vla_rl.planning.costs import Line

_GOLDEN = 0.6180339887498949
NOTHING = Line(0.0, 0.0)


@dataclass(frozen=True)
class Play:
    """A window of play of one rank, or of several that share an engine and have simulators and cores each."""

    envs: int
    """Of each rank."""
    turns: int
    workers: int
    """Simulator processes of each rank; 0: it simulates itself."""
    cores: float
    """Of each rank, for its main process and its simulators."""
    turn: float
    """Seconds of a core for one environment's turn: steps and image."""
    reset: float = 0.0
    episode_turns: float = float("inf")
    staggered: bool = True
    """Episodes end at different times; else all are as long, and end together."""
    infer: Line = NOTHING
    """Of a batch."""
    on_device: bool = False
    """The engine computes on a device of its own, not on the rank's cores."""
    values: Line = NOTHING
    """Valuing what follows the window, where the engine is."""
    overhead: Line = NOTHING
    """Of the main process for each turn of a group."""
    ranks: int = 1
    """That share the engine."""
    transfer: Line = NOTHING
    """Of a batch to the engine and back, of n observations."""


@dataclass(frozen=True)
class PlayTimes:
    """Seconds of a window, the mean over the ranks; `total` is the slowest's."""

    total: float
    simulate: float
    """Waiting for simulators."""
    infer: float
    """With waiting for an engine that others use."""
    other: float


class _Event:
    """Something that will have happened."""

    __slots__ = ("done", "waiting")

    def __init__(self) -> None:
        self.done = False
        self.waiting: list[Callable[[], None]] = []

    def happen(self) -> None:
        self.done = True
        for resume in self.waiting:
            resume()
        self.waiting = []


_Process = Generator[_Event, None, None]


class _Cores:
    """Cores that all who compute share evenly, nobody having more than one."""

    def __init__(self, count: float) -> None:
        self.count = count
        self.progress = 0.0  # of everybody who computes since the beginning
        self.running: list[tuple[float, int, _Event]] = []

    def next_in(self) -> float:
        """Seconds until the first of them is done."""
        if not self.running:
            return float("inf")
        return max(0.0, self.running[0][0] - self.progress) / self._rate()

    def advance(self, seconds: float) -> None:
        if self.running:
            self.progress += seconds * self._rate()

    def _rate(self) -> float:
        return min(1.0, self.count / len(self.running))


class _World:
    """The clock, and all that is under way."""

    def __init__(self) -> None:
        self.now = 0.0
        self.number = itertools.count()
        self.timers: list[tuple[float, int, _Event]] = []
        self.cores: list[_Cores] = []
        self.free_at = 0.0  # the engine

    def compute(self, cores: _Cores, seconds: float) -> _Event:
        """Work of so many seconds of one core."""
        event = _Event()
        if seconds <= 0:
            event.done = True
        else:
            heapq.heappush(cores.running, (cores.progress + seconds, next(self.number), event))
        return event

    def delay(self, seconds: float) -> _Event:
        event = _Event()
        heapq.heappush(self.timers, (self.now + seconds, next(self.number), event))
        return event

    def serve(self, seconds: float) -> _Event:
        """The engine's answer, after those that were asked for before."""
        if seconds <= 0:
            return self.delay(0.0)
        self.free_at = max(self.now, self.free_at) + seconds
        return self.delay(self.free_at - self.now)

    def start(self, process: _Process) -> _Event:
        """Let a process run; the event is its end."""
        ended = _Event()

        def resume() -> None:
            for event in process:
                if not event.done:
                    event.waiting.append(resume)
                    return
            ended.happen()

        resume()
        return ended

    def run(self) -> None:
        """Until nothing is under way any more."""
        while True:
            waits = [cores.next_in() for cores in self.cores]
            timer = self.timers[0][0] - self.now if self.timers else float("inf")
            wait = min([timer, *waits])
            if wait == float("inf"):
                return
            self.now += wait
            for cores in self.cores:
                cores.advance(wait)
            if timer <= wait:
                heapq.heappop(self.timers)[2].happen()
                continue
            first = self.cores[waits.index(wait)]
            ready, _, event = heapq.heappop(first.running)
            first.progress = max(first.progress, ready)
            event.happen()


class _Rank:
    """The main process of one rank, and its simulators."""

    def __init__(self, world: _World, play: Play, first: int = 0) -> None:
        self.world, self.play = world, play
        self.cores = _Cores(play.cores)
        world.cores.append(self.cores)
        half = (play.envs + 1) // 2
        everyone = range(play.envs)
        self.groups = [group for group in (everyone[:half], everyone[half:]) if len(group)]
        self.last: dict[int, _Event] = {}  # by worker: the end of the work it was given last
        self.posted: list[list[_Event]] = [[] for _ in self.groups]
        self.spent = {"simulate": 0.0, "infer": 0.0, "other": 0.0}
        self.ended_at = 0.0
        self.ending = self._endings(first)

    def _endings(self, first: int) -> dict[tuple[int, int], list[int]]:
        """By group and turn: the environments whose episode ends there, in the steady state."""
        length, found = self.play.episode_turns, {}
        if length == float("inf"):
            return {}
        for index, group in enumerate(self.groups):
            for env in group:
                phase = (first + env) * _GOLDEN % 1.0 * length if self.play.staggered else 0.0
                episodes = itertools.count(1)
                while (turn := math.ceil(next(episodes) * length - phase) - 1) < self.play.turns:
                    found.setdefault((index, turn), []).append(env)
        return found

    def process(self) -> _Process:
        """`Collector.collect`."""
        for turn in range(self.play.turns):
            for index in range(len(self.groups)):
                if turn > 0:
                    yield from self._receive(index, turn - 1)
                yield from self._act(index)
        for index in range(len(self.groups)):
            yield from self._receive(index, self.play.turns - 1)
        yield from self._infer(self.play.values.at(self.play.envs), 0.0)
        self.ended_at = self.world.now

    def _timed(self, activity: str, events: Iterable[_Event]) -> _Process:
        since = self.world.now
        yield from events
        self.spent[activity] += self.world.now - since

    def _infer(self, seconds: float, transfer: float) -> _Process:
        world = self.world
        since = world.now
        if transfer > 0:
            yield world.delay(transfer)
        yield world.serve(seconds) if self.play.on_device else world.compute(self.cores, seconds)
        self.spent["infer"] += world.now - since

    def _act(self, index: int) -> _Process:
        group = self.groups[index]
        yield from self._infer(self.play.infer.at(len(group)), self.play.transfer.at(len(group)))
        overhead = self.world.compute(self.cores, self.play.overhead.at(len(group)))
        yield from self._timed("other", [overhead])
        self.posted[index] = yield from self._post(group, self.play.turn, "other")

    def _receive(self, index: int, turn: int) -> _Process:
        yield from self._timed("simulate", self.posted[index])
        ended = self.ending.get((index, turn), [])
        if ended:
            events = yield from self._post(ended, self.play.reset, "other")
            yield from self._timed("simulate", events)

    def _post(
        self, envs: Iterable[int], seconds: float, activity: str
    ) -> Generator[_Event, None, list[_Event]]:
        """Give the simulators work; without processes of their own it is done at once, here."""
        workers = self.play.workers
        if workers == 0:
            work = self.world.compute(self.cores, seconds * len(list(envs)))
            yield from self._timed(activity, [work])
            return []
        amounts: dict[int, float] = {}
        for env in envs:
            amounts[env % workers] = amounts.get(env % workers, 0.0) + seconds
        for worker, amount in amounts.items():
            self.last[worker] = self.world.start(self._work(self.last.get(worker), amount))
        return [self.last[worker] for worker in amounts]

    def _work(self, before: _Event | None, seconds: float) -> _Process:
        if before is not None:
            yield before
        yield self.world.compute(self.cores, seconds)


@lru_cache(maxsize=4096)
def simulate(play: Play) -> PlayTimes:
    """Play the window."""
    world = _World()
    ranks = [_Rank(world, play, number * play.envs) for number in range(play.ranks)]
    for rank in ranks:
        world.start(rank.process())
    world.run()
    mean = {name: sum(rank.spent[name] for rank in ranks) / len(ranks) for name in ranks[0].spent}
    return PlayTimes(max(rank.ended_at for rank in ranks), **mean)


def passes(parts: int, seconds: float, threads: int, cores: float, overlap: float = 1.0) -> float:
    """Seconds of so many equal passes, each of `seconds` of a core, in so many threads of one process.

    overlap: share of a pass that threads can do at the same time.
    """
    total, left = 0.0, parts
    while left > 0:
        together = min(left, max(1, threads))
        total += seconds * max(1.0, together / cores, together * (1.0 - overlap))
        left -= together
        if left >= together and left % together == 0:  # all rounds that follow are alike
            return total * (left // together + 1)
    return total
