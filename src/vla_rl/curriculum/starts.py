"""Which episodes start at states of demonstrations, and at which.

A privileged reset: the simulator is put where an expert has been, and no action of the expert is used. The policy plays
on from there, and is rewarded as ever.

    uniform  before any action of a demonstration of the task but the first, each as likely
    reverse  per task at a share f of a demonstration's length, which moves back by `step` when the last `window`
             episodes that started at this f succeeded in at least `threshold` of the cases

Florensa et al. 2017 (arXiv:1707.05300), Salimans and Chen 2018 (arXiv:1812.03381), RFCL 2024 (arXiv:2405.03379).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vla_rl.config import StartsConfig, UserError
from vla_rl.curriculum.sampler import TaskSampler
from vla_rl.runtime.seeding import generator
from vla_rl.types import EpisodeSpec, Start


class Way(NamedTuple):
    """A demonstration, on whose way episodes may start."""

    demonstration: int
    initial_state: int
    length: int  # actions
    last: int  # frame at which an episode may start at the latest, from 1 on

    def at(self, fraction: float) -> int:
        """The frame at this share of its length; 0 is the initial state."""
        return min(round(fraction * self.length), self.last)


class Ended(Protocol):
    """An episode that ended."""

    @property
    def spec(self) -> EpisodeSpec: ...

    @property
    def success(self) -> bool: ...


class Starts:
    """Draws episodes as `sampler` does, and lets a share of them start on the way of a demonstration of their task.

    A task without demonstrations always starts at its beginning, as does one whose share f has come to 0. Which
    episodes those are is a function of the seed, the environment, how many it has drawn, and the shares, which change
    in `end_window` alone: as of `TaskSampler`, it does not matter how many processes play.
    """

    def __init__(
        self,
        config: StartsConfig,
        sampler: TaskSampler,
        ways: Mapping[str, Sequence[Way]],
        seed: int,
        dataset: str = "",
        fractions: Mapping[str, float] | None = None,
    ) -> None:
        """`ways`: by task; none at all: every episode starts at its beginning. dataset: says which one they are of.
        fractions: where tasks begin, if not at `config.fraction`.
        """
        self.config, self.sampler, self.seed, self.dataset = config, sampler, seed, dataset
        self.ways = {task: tuple(own) for task, own in ways.items() if own}
        first = fractions or {}
        self.fractions = {task: first.get(task, config.fraction) for task in self.ways}
        self.stages = dict.fromkeys(self.ways, 0)
        self._recent = {task: deque[bool](maxlen=config.window) for task in self.ways}
        self._window: list[Ended] = []  # those that ended in the last one

    def draw_one(self, env: int = 0, shard: int = 0) -> EpisodeSpec:
        """The next episode to play, in an environment of a shard."""
        spec = self.sampler.draw_one(env, shard)
        if spec.task not in self.ways:
            return spec
        rng = generator(self.seed, "starts", env, self.sampler.drawn(env))
        if rng.random() >= self.config.share:
            return spec
        ways = self.ways[spec.task]
        way = ways[int(rng.integers(len(ways)))]
        if self.config.draw == "uniform":
            frame = 1 + int(rng.integers(way.last))
        else:
            frame = way.at(self.fractions[spec.task])
        if frame == 0:
            return spec
        start = Start(way.demonstration, frame, self.stages[spec.task])
        return EpisodeSpec(spec.task, way.initial_state, start)

    def draw_group(self, size: int) -> list[EpisodeSpec]:
        """One draw, `size` times, as of `TaskSampler`."""
        if not self.ways:
            return self.sampler.draw_group(size)
        return [self.draw_one()] * size

    def end_window(self, finished: Sequence[Ended]) -> None:
        """Between two windows of play: hear how the episodes of all processes ended, the same in every process."""
        self._window = list(finished)
        if self.config.draw != "reverse":
            return
        for episode in finished:
            task, start = episode.spec.task, episode.spec.start
            # of an earlier share: easier than what is asked about now
            if start is None or start.stage != self.stages[task]:
                continue
            recent = self._recent[task]
            recent.append(episode.success)
            if len(recent) == self.config.window and np.mean(recent) >= self.config.threshold:
                self.fractions[task] = max(0.0, round(self.fractions[task] - self.config.step, 6))
                self.stages[task] += 1
                recent.clear()

    def metrics(self) -> dict[str, float]:
        """Of the last window's episodes that started on the way; nothing where none ever does.

        `starts/episodes`, `starts/share` of all episodes, `starts/success_rate` and `starts/success/<task>`. In
        `reverse` also `starts/fraction/<task>`, where that task starts now.
        """
        if not self.ways:
            return {}
        own = [episode for episode in self._window if episode.spec.start is not None]
        metrics = {"starts/episodes": float(len(own))}
        if self._window:
            metrics["starts/share"] = len(own) / len(self._window)
        if own:
            metrics["starts/success_rate"] = float(np.mean([e.success for e in own]))
        for task in self.ways:
            outcomes = [e.success for e in own if e.spec.task == task]
            if outcomes:
                metrics[f"starts/success/{task}"] = float(np.mean(outcomes))
            if self.config.draw == "reverse":
                metrics[f"starts/fraction/{task}"] = self.fractions[task]
        return metrics

    def state_dict(self) -> dict[str, Any] | None:
        """All that the next draws depend on beside the sampler, as JSON; None where no episode starts on the way."""
        if not self.ways:
            return None
        return {
            "dataset": self.dataset,
            "fractions": dict(self.fractions),
            "stages": dict(self.stages),
            "recent": {task: [int(x) for x in recent] for task, recent in self._recent.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on where `state_dict` was taken. UserError if that was with other demonstrations, or with none now."""
        if state is None:  # of a run that began without: its share begins now
            return
        if state["dataset"] != self.dataset or state["fractions"].keys() != self.ways.keys():
            now = f"others ({self.dataset})" if self.ways else "none"
            raise UserError(
                f"the run's episodes start at states of certain demonstrations ({state['dataset']}), and "
                f"starts.dataset gives {now}: go on with the dataset that the run was started with"
            )
        self.fractions = {task: float(state["fractions"][task]) for task in self.ways}
        self.stages = {task: int(state["stages"][task]) for task in self.ways}
        for task, recent in self._recent.items():
            recent.clear()
            recent.extend(bool(x) for x in state["recent"][task])
