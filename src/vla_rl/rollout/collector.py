"""The actor-environment loop: play M turns in every environment, and nothing else.

The environments are driven in two groups. While one group simulates, the policy infers for the other, so
simulators and inference overlap, yet the batches never depend on who was faster: the same seed
gives the same rollout to the bit, with any number of worker processes.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from vla_rl.config.parallel import ParallelConfig
from vla_rl.distributed.shards import Shards
from vla_rl.envs.env import EpisodesLostError, VectorEnv
from vla_rl.envs.vector.work_times import TimesItsWork
from vla_rl.policies.policy import decoded, tokens_of_turn
from vla_rl.rollout.buffer import FinishedEpisode, Playing, RolloutBuffer
from vla_rl.rollout.clock import Clock
from vla_rl.rollout.engine import Player
from vla_rl.runtime.call_times import CallTimes
from vla_rl.runtime.seeding import generator
from vla_rl.types import EpisodeSpec, Observation, Rollout, Start, StepResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collected:
    """A window of play, the episodes that ended in it, and what it cost."""

    rollout: Rollout
    finished: list[FinishedEpisode]
    simulator_steps: int
    seconds: dict[str, float]  # simulate (waiting for simulators), infer, other
    own_seconds: dict[str, float] = field(default_factory=dict)
    """The same in processor time of this thread, with `values`: valuing what follows the window."""
    simulators: dict[str, CallTimes] = field(default_factory=dict)
    """What the simulators' steps, images and resets cost, where they count it, since the window before."""
    waited: float | None = None  # seconds, where it was played beside the learning

    @property
    def outcomes(self) -> list[tuple[str, bool]]:
        """Task and success of the episodes that ended, in that order; of those that started in their initial state."""
        return [
            (episode.spec.task, episode.success)
            for episode in self.finished
            if episode.spec.start is None
        ]


class WindowGivenUpError(RuntimeError):
    """The window was of no use any more."""


class Collector:
    """Plays windows of M turns in N environments; episodes run on across window edges.

    `draw` gives the next episode of an environment (the curriculum): it is told the environment's number and shard.
    Crashed episodes are played again and never count as finished.

    `collect_episodes` plays given episodes to their end instead, in a window as long as that takes.
    """

    def __init__(
        self,
        player: Player,
        envs: VectorEnv,
        draw: Callable[[int, int], EpisodeSpec],
        seed: int,
        dense_reward_max: float | None = None,
        shards: Shards | None = None,
    ) -> None:
        """`envs` are the environments of this process among those of `shards`; None: it has all.

        `dense_reward_max`: also ask the simulator for its own dense reward after each turn (privileged), and divide
        it by this number, what a solved task gives (`Benchmark.dense_reward_max`). None: it is not asked.
        """
        self.player, self.envs, self.draw, self.seed = player, envs, draw, seed
        self.shards = shards or Shards.of(envs.num_envs, ParallelConfig.shards)
        self.first = self.shards.own_envs.start  # of our environments
        self.num_tokens = tokens_of_turn(player)
        self.dense_reward_max = dense_reward_max
        half = (envs.num_envs + 1) // 2
        slots = np.arange(envs.num_envs)
        self.groups = [group for group in (slots[:half], slots[half:]) if len(group)]
        self.playing: dict[int, Playing] = {}  # by slot
        self.members = [group[:0] for group in self.groups]  # per group: the slots that play
        self.current: list[Observation] = []  # per group: what those see now
        self.given_up = threading.Event()
        """Set by another thread: the window that is being played ends with WindowGivenUpError at its next turn."""
        self.started = np.zeros(self.shards.num_envs, np.int64)  # episodes of each environment
        self.listed, self.groups_started = 0, 0  # of all processes, by `collect_episodes`

    def start(self) -> None:
        """Start a first episode in every environment."""
        self.playing = {slot: self._drawn(slot) for slot in range(self.envs.num_envs)}
        self._reset_all()

    def _drawn(self, slot: int) -> Playing:
        """The next episode that the curriculum draws for an environment, a group of its own."""
        env = self.first + slot
        return self._next_of(slot, self.draw(env, self.shards.of_env(env)))

    def _next_of(self, slot: int, spec: EpisodeSpec) -> Playing:
        """An episode of an environment: numbered so that no other process needs to be asked."""
        env = self.first + slot
        number = int(self.started[env]) * self.shards.num_envs + env
        self.started[env] += 1
        return Playing(spec, number, number)

    def _reset_all(self) -> None:
        """Start what is in `playing`."""
        self.members = [
            group[[int(slot) in self.playing for slot in group]] for group in self.groups
        ]
        for slots in self.members:
            if len(slots):
                self.envs.post_reset(list(slots), [self.playing[i].spec for i in slots])
        self.current = [
            self._wait_until_reset(slots).observation if len(slots) else _NOTHING_SEEN
            for slots in self.members
        ]

    def collect(self, num_turns: int, temperature: float, iteration: int) -> Collected:
        """Play `num_turns` turns in every environment.

        A window whose every turn was lost with its simulator says nothing and is played again.
        """
        if len(self.playing) < self.envs.num_envs:
            raise RuntimeError(
                "some environments have no episode to go on with: call start() first"
            )
        uniforms = generator(self.seed, "rollout", iteration).random(
            (num_turns, self.shards.num_envs, self.num_tokens), dtype=np.float32
        )[:, self.first : self.first + self.envs.num_envs]
        run = self._open(
            num_turns, iteration, self._drawn, lambda turn, slots: uniforms[turn, slots]
        )
        window, clock = run.window, run.clock
        for turn in range(num_turns):
            for index in range(len(self.groups)):
                if turn > 0:
                    self._receive(index, run, turn - 1)
                self._act(index, run, turn, temperature)
        for index in range(len(self.groups)):
            self._receive(index, run, num_turns - 1)
        clock.switch("infer", "values")
        rollout = window.finish(self.player, Observation.concatenate(self.current), temperature)
        if not rollout.valid.any():  # bounded by env.max_restarts
            logger.warning(
                "every turn of this window was lost with its simulator; playing it again"
            )
            return self.collect(num_turns, temperature, iteration)
        return self._collected(rollout, run)

    def collect_episodes(
        self, groups: Sequence[Sequence[EpisodeSpec]], temperature: float, iteration: int
    ) -> Collected | None:
        """Play groups of episodes, each to its end, in their order; then every environment is idle.

        All processes are given all groups. The n-th episode of the run is played in shard n modulo their number, in
        whichever of its environments is free, with draws of its own: what happens in it depends on nothing else. None
        where this process has none of them to play.
        An attempt that is lost with its simulator counts for nothing, and its episode is played again. Nothing follows
        the window: `next_values` and `next_images` of the rollout are zeros.
        """
        if self.playing:
            raise RuntimeError("episodes of a window before are still running")
        waiting = self._listed(groups)
        for slot in range(self.envs.num_envs):
            if (episode := self._waiting(waiting, slot)) is not None:
                self.playing[slot] = episode
        if not self.playing:
            return None
        self._reset_all()
        run = self._open(
            self.envs.horizon,
            iteration,
            lambda slot: self._waiting(waiting, slot),
            lambda _, slots: np.stack([self._own_draw(self.playing[int(slot)]) for slot in slots]),
            to_the_end=True,
        )
        window, turn = run.window, 0
        while self.playing:
            if turn == window.num_turns:
                window.grow()
            for index in range(len(self.groups)):
                if turn > 0:
                    self._receive(index, run, turn - 1)
                self._act(index, run, turn, temperature)
            turn += 1
        window.trim(int((window.episode_ids >= 0).any(1).sum()))
        run.clock.switch("infer")
        rollout = window.finish(self.player, None, temperature)
        return self._collected(rollout, run)

    def _listed(self, groups: Sequence[Sequence[EpisodeSpec]]) -> list[deque[Playing]]:
        """The episodes of groups, numbered in their order, by shard."""
        waiting: list[deque[Playing]] = [deque() for _ in range(self.shards.count)]
        before = self.listed
        for group in groups:
            for spec in group:
                waiting[self.listed % self.shards.count].append(
                    Playing(spec, self.listed, self.groups_started)
                )
                self.listed += 1
            self.groups_started += 1
        if self.listed == before:
            raise ValueError("there are no episodes to play")
        return waiting

    def _waiting(self, waiting: list[deque[Playing]], slot: int) -> Playing | None:
        """What a slot plays next of such a list."""
        of_shard = waiting[self.shards.of_env(self.first + slot)]
        return of_shard.popleft() if of_shard else None

    def _own_draw(self, episode: Playing) -> Float32[np.ndarray, " K"]:
        """The sampler's randomness for the next turn of an episode of a list."""
        drawn = generator(self.seed, "episode", episode.number, episode.turns)
        return drawn.random(self.num_tokens, dtype=np.float32)

    def _collected(self, rollout: Rollout, run: _Run) -> Collected:
        window, seconds = run.window, run.clock.stop()
        # asked here: the next window may be played in another thread than the one that reads the numbers
        simulators = self.envs.work_times() if isinstance(self.envs, TimesItsWork) else {}
        return Collected(
            rollout, window.finished, window.simulator_steps, seconds, run.clock.own, simulators
        )

    def _open(
        self,
        num_turns: int,
        version: int,
        following: Callable[[int], Playing | None],
        uniforms: Callable[[int, Int64[np.ndarray, " S"]], Float32[np.ndarray, "S K"]],
        to_the_end: bool = False,
    ) -> _Run:
        for episode in self.playing.values():
            episode.window_start = 0
        seen = next(seen for seen in self.current if len(seen))
        window = RolloutBuffer(
            num_turns, self.envs, self.num_tokens, seen, self.dense_reward_max is not None, self.shards,
            version,
        )  # fmt: skip
        return _Run(window, following, uniforms, Clock(), to_the_end)

    def _act(self, index: int, run: _Run, turn: int, temperature: float) -> None:
        if self.given_up.is_set():
            raise WindowGivenUpError
        slots, clock = self.members[index], run.clock
        if not len(slots):
            return
        clock.switch("infer")
        output = self.player.act(self.current[index], temperature, run.uniforms(turn, slots))
        actions = decoded(self.player, output.tokens, self.current[index].instructions)
        clock.switch("other")
        self.envs.post_step(list(slots), actions)
        tokens = output.tokens.cpu().numpy()
        episodes = [self.playing[i] for i in slots]
        run.window.record_decision(turn, slots, self.current[index], output, tokens, episodes)
        for row, episode in enumerate(episodes):
            episode.actions.append(tokens[row].tolist())

    def _receive(self, index: int, run: _Run, turn: int) -> None:
        """Take the outcome of `turn` and give every slot whose episode ended the next one, if there is one."""
        slots, window, clock = self.members[index], run.window, run.clock
        if not len(slots):
            return
        clock.switch("simulate")
        result = self.envs.wait(list(slots))
        clock.switch("other")
        window.record_outcome(turn, slots, result)
        if window.simulator_rewards is not None:  # before any reset
            window.simulator_rewards[turn, slots] = self._simulator_rewards(slots, result.lost)
        restarted: list[int] = []
        for row, slot in enumerate(int(slot) for slot in slots):
            self.playing[slot].turns += 1
            if result.lost[row] or result.terminated[row] or result.truncated[row]:
                following = self._end(slot, run, turn, result, row)
                del self.playing[slot]
                if following is not None:
                    following.window_start = turn + 1
                    self.playing[slot] = following
                    restarted.append(row)
        seen = result.observation
        if restarted:
            fresh_slots = [int(slots[row]) for row in restarted]
            self.envs.post_reset(fresh_slots, [self.playing[i].spec for i in fresh_slots])
            clock.switch("simulate")
            fresh = self._wait_until_reset(fresh_slots).observation
            clock.switch("other")
            seen = _replace_rows(seen, restarted, fresh)
        going_on = [row for row, slot in enumerate(slots) if slot in self.playing]
        if len(going_on) < len(slots):
            self.members[index], seen = slots[going_on], seen.select(going_on)
        self.current[index] = seen

    def _end(self, slot: int, run: _Run, turn: int, result: StepResult, row: int) -> Playing | None:
        """Note how the slot's episode ended; returns what it plays next."""
        episode = self.playing[slot]
        if result.lost[row]:
            if run.to_the_end:
                run.window.drop_episode(slot, episode.window_start, turn)
                return Playing(episode.spec, episode.number + _ATTEMPT, episode.group)
            return self._next_of(slot, episode.spec)
        success = bool(result.terminated[row])
        run.window.finish_episode(slot, episode.window_start, turn, episode, success)
        return run.following(slot)

    def _simulator_rewards(
        self, slots: Int64[np.ndarray, " S"], lost: Bool[np.ndarray, " S"]
    ) -> Float32[np.ndarray, " S"]:
        assert self.dense_reward_max is not None
        rewards = np.full(len(slots), np.nan, np.float32)
        with suppress(EpisodesLostError):  # they come back as lost on the next turn
            asked = self.envs.dense_rewards([int(slot) for slot in slots[~lost]])
            rewards[~lost] = np.clip(asked / self.dense_reward_max, 0, 1)
        return rewards

    def _wait_until_reset(self, slots: Any) -> StepResult:
        """Wait for resets; a worker that crashes while resetting is asked again (it has been restarted)."""
        slots = [int(i) for i in slots]
        result = self.envs.wait(slots)
        while result.lost.any():
            again = [slots[row] for row in np.flatnonzero(result.lost)]
            self.envs.post_reset(again, [self.playing[i].spec for i in again])
            fresh = self.envs.wait(again)
            rows = [slots.index(i) for i in again]
            lost = result.lost.copy()
            lost[rows] = fresh.lost
            merged = _replace_rows(result.observation, rows, fresh.observation)
            result = StepResult(
                result.slots,
                merged,
                result.rewards,
                result.terminated,
                result.truncated,
                result.simulator_steps,
                lost,
            )
        return result

    def state_dict(self) -> dict[str, Any]:
        """JSON: each environment's episode and the actions played in it so far; enough to rebuild it exactly."""
        slots = [self.playing.get(slot) for slot in range(self.envs.num_envs)]
        return {
            "slots": [e and [e.spec.task, e.spec.initial_state, [*e.actions]] for e in slots],
            "starts": [e and e.spec.start and [*e.spec.start] for e in slots],
            "numbers": [e and [e.number, e.group] for e in slots],
            "started": self.started[self.first : self.first + len(slots)].tolist(),
            "listed": [self.listed, self.groups_started],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Rebuild every running episode: start it where it began, and play its actions again (to the same end)."""
        rows = state["slots"]
        if len(rows) != self.envs.num_envs:
            raise ValueError(
                f"saved with {len(rows)} environments, now there are {self.envs.num_envs}"
            )
        # runs of before did not number their episodes, or numbered them one after the other
        numbers = state.get("numbers", [[slot, slot] for slot in range(len(rows))])
        starts = state.get("starts", [None] * len(rows))
        started = state.get("started", [1] * len(rows))
        if "listed" not in state:
            started = [max(started)] * len(rows)
        self.started[self.first : self.first + len(rows)] = started
        self.listed, self.groups_started = state.get("listed", [0, 0])
        self.playing = {
            slot: Playing(
                EpisodeSpec(row[0], int(row[1]), start and Start(*start)),
                number=number[0],
                group=number[1],
                turns=len(row[2]),
                actions=[*row[2]],
            )
            for slot, (row, number, start) in enumerate(zip(rows, numbers, starts, strict=True))
            if row is not None
        }
        self._reset_all()
        for turn in range(max((e.turns for e in self.playing.values()), default=0)):
            behind = [slot for slot, e in self.playing.items() if e.turns > turn]
            tokens = torch.tensor([self.playing[i].actions[turn] for i in behind])
            words = self._instructions()
            actions = decoded(self.player, tokens, [words[slot] for slot in behind])
            self.envs.post_step(behind, actions)
            result = self.envs.wait(behind)
            for index, slots in enumerate(self.members):
                members = {int(slot): row for row, slot in enumerate(slots)}
                pairs = [(members[slot], row) for row, slot in enumerate(behind) if slot in members]
                if pairs:
                    target, source = [p[0] for p in pairs], [p[1] for p in pairs]
                    fresh = result.observation.select(source)
                    self.current[index] = _replace_rows(self.current[index], target, fresh)

    def _instructions(self) -> dict[int, str]:
        """What each slot that plays has been told."""
        return {
            int(slot): text
            for slots, seen in zip(self.members, self.current, strict=True)
            for slot, text in zip(slots, seen.instructions, strict=True)
        }


@dataclass(frozen=True)
class _Run:
    """One window in the making."""

    window: RolloutBuffer
    following: Callable[[int], Playing | None]
    """The next episode to play; None where there is no other."""
    uniforms: Callable[[int, Int64[np.ndarray, " S"]], Float32[np.ndarray, "S K"]]
    """The sampler's randomness in a turn, for some slots."""
    clock: Clock
    to_the_end: bool = False
    """Every episode of the window is played to its end, or counts for nothing."""


_ATTEMPT = 2**40
"""Between the numbers of two attempts at an episode of a list: more than a run has, and known without asking."""
_NOTHING_SEEN = Observation(
    np.zeros((0, 1, 1, 3), np.uint8), (), np.zeros((0, 1), np.float32), np.zeros(0, np.float32)
)


def _replace_rows(base: Observation, rows: list[int], fresh: Observation) -> Observation:
    images, proprio, time_fraction = (
        base.images.copy(),
        base.proprio.copy(),
        base.time_fraction.copy(),
    )
    images[rows], proprio[rows], time_fraction[rows] = (
        fresh.images,
        fresh.proprio,
        fresh.time_fraction,
    )
    instructions = list(base.instructions)
    for row, text in zip(rows, fresh.instructions, strict=True):
        instructions[row] = text
    return Observation(images, tuple(instructions), proprio, time_fraction)
