"""Evaluation as a protocol: every (task, initial state) exactly once, whatever the number of workers.

Episodes are handed to the environments from one list. The order in which they end cannot change any result: greedy
decoding has no randomness, and sampled decoding takes its uniforms from (seed, task, initial state, turn).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from vla_rl.envs.env import VectorEnv
from vla_rl.policies.policy import Policy, decoded, meant, tokens_of_turn
from vla_rl.runtime.seeding import generator
from vla_rl.types import EpisodeSpec, Observation


@dataclass
class EpisodeRecord:
    """How one (task, initial state) went."""

    spec: EpisodeSpec
    success: bool = False
    turns: int = 0
    simulator_steps: int = 0
    tokens: list[list[int]] = field(default_factory=list)  # per turn, to replay it for a video
    simulated_turns: int = 0
    """By a search: turns that were simulated for it, discarded ones included."""
    actions: list[Float32[np.ndarray, "C A"]] = field(default_factory=list)
    """The same as `tokens` where whoever plays has none."""
    invalid_turns: int | None = None
    """Turns whose tokens meant no action, in which the robot stood still; None where all do."""

    def begin(self) -> None:
        """Nothing of the episode has been played."""
        self.turns, self.simulator_steps, self.tokens, self.actions = 0, 0, [], []
        self.invalid_turns = None


Decide = Callable[[Observation, Sequence[EpisodeRecord]], Int64[Tensor, "S K"]]
"""Chooses the next turn's tokens of some episodes, each known by how far it has come."""


class Player(Protocol):
    """Plays the episodes: a policy of this process, or one somewhere else."""

    def act(
        self, slots: Sequence[int], observation: Observation, records: Sequence[EpisodeRecord]
    ) -> Mapping[int, Float32[np.ndarray, "C A"]]:
        """The next turn's actions of each of `slots`, and what was decided into their records.

        A slot without any has lost its episode, which is played again from its start.
        """
        ...


def play_each_once(
    policy: Policy,
    envs: VectorEnv,
    specs: Sequence[EpisodeSpec],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    on_episode: Callable[[EpisodeRecord], None] | None = None,
    decide: Decide | None = None,
) -> list[EpisodeRecord]:
    """Play every spec once and return the records in the order of `specs`.

    `decide` takes the policy's place in choosing tokens; then temperature and seed are its own business.
    An episode lost to a crashed or hung simulator is played again from its start. Slots are driven in two groups, so
    that one infers while the other simulates.
    """
    player = _PolicyPlayer(policy, decide or by_itself(policy, temperature, seed))
    return play_each_once_by(player, envs, specs, on_episode)


def play_each_once_by(
    player: Player,
    envs: VectorEnv,
    specs: Sequence[EpisodeSpec],
    on_episode: Callable[[EpisodeRecord], None] | None = None,
) -> list[EpisodeRecord]:
    """`play_each_once` for any player."""
    if not specs:
        raise ValueError("no episodes to evaluate: give at least one (task, initial state)")
    records = [EpisodeRecord(spec) for spec in specs]
    queue = list(range(len(specs)))[::-1]
    half = (envs.num_envs + 1) // 2
    groups = [_Group(list(range(half)), envs), _Group(list(range(half, envs.num_envs)), envs)]
    for group in groups:
        group.fill(queue, records)
    while any(group.playing for group in groups):
        for group in groups:
            group.receive(queue, records, on_episode)
            group.act(player, records)
    return records


class _PolicyPlayer:
    def __init__(self, policy: Policy, decide: Decide) -> None:
        self._policy, self._decide = policy, decide

    def act(
        self, slots: Sequence[int], observation: Observation, records: Sequence[EpisodeRecord]
    ) -> Mapping[int, Float32[np.ndarray, "C A"]]:
        tokens = self._decide(observation, records)
        for record, row in zip(records, tokens.cpu().tolist(), strict=True):
            record.tokens.append(row)
        means_actions = meant(self._policy, tokens)
        if means_actions is not None:
            for record, valid in zip(records, means_actions.tolist(), strict=True):
                record.invalid_turns = (record.invalid_turns or 0) + (not valid)
        actions = decoded(self._policy, tokens, observation.instructions)
        return dict(zip(slots, actions, strict=True))


def by_itself(policy: Policy, temperature: float, seed: int) -> Decide:
    """What the policy does by itself: greedy, or sampled with keyed randomness."""

    def decide(observation: Observation, records: Sequence[EpisodeRecord]) -> Int64[Tensor, "S K"]:
        uniforms = None
        if temperature > 0:
            tokens = tokens_of_turn(policy)
            draws = [
                generator(seed, r.spec.task, r.spec.initial_state, r.turns).random(
                    tokens, np.float32
                )
                for r in records
            ]
            uniforms = np.stack(draws)
        return policy.act(observation, temperature, uniforms).tokens

    return decide


class _Group:
    """Slots that act together. `playing` maps a slot to the index of its record."""

    def __init__(self, slots: list[int], envs: VectorEnv) -> None:
        self.slots, self.envs = slots, envs
        self.playing: dict[int, int] = {}
        self.posted: list[int] = []  # slots with a step under way
        self.views: dict[int, Observation] = {}  # slot -> its single observation

    def fill(self, queue: list[int], records: list[EpisodeRecord]) -> None:
        """Give every free slot an episode of the queue and wait for the first images."""
        fresh = []
        for slot in self.slots:
            if slot not in self.playing and queue:
                self.playing[slot] = queue.pop()
                fresh.append(slot)
        self._reset(fresh, records)

    def _reset(self, slots: list[int], records: list[EpisodeRecord]) -> None:
        while slots:
            specs = []
            for slot in slots:
                record = records[self.playing[slot]]
                record.begin()
                specs.append(record.spec)
            self.envs.post_reset(slots, specs)
            result = self.envs.wait(slots)
            for row, slot in enumerate(slots):
                self.views[slot] = result.observation.select([row])
            slots = [slot for row, slot in enumerate(slots) if result.lost[row]]

    def receive(
        self,
        queue: list[int],
        records: list[EpisodeRecord],
        on_episode: Callable[[EpisodeRecord], None] | None,
    ) -> None:
        """Take the outcome of the last step; free the slots whose episode ended and refill them."""
        if not self.posted:
            return
        result = self.envs.wait(self.posted)
        lost = []
        for row, slot in enumerate(self.posted):
            if result.lost[row]:
                lost.append(slot)
                continue
            record = records[self.playing[slot]]
            record.turns += 1
            record.simulator_steps += int(result.simulator_steps[row])
            self.views[slot] = result.observation.select([row])
            if result.terminated[row] or result.truncated[row]:
                record.success = bool(result.terminated[row])
                del self.playing[slot]
                if on_episode is not None:
                    on_episode(record)
        self.posted = []
        self._reset(lost, records)
        self.fill(queue, records)

    def act(self, player: Player, records: list[EpisodeRecord]) -> None:
        """Decide the next turn of every playing slot and post it; begin again what was lost."""
        if not self.playing:
            return
        slots = sorted(self.playing)
        observation = Observation.concatenate([self.views[slot] for slot in slots])
        decided = player.act(slots, observation, [records[self.playing[slot]] for slot in slots])
        self._reset([slot for slot in slots if slot not in decided], records)
        self.posted = [slot for slot in slots if slot in decided]
        if self.posted:
            self.envs.post_step(self.posted, np.stack([decided[slot] for slot in self.posted]))
