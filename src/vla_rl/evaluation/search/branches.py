"""Continuations of episodes played side by side: from a snapshot, or from the start, some turns on.

Every slot of the vector environment serves whichever branch is next, so a branch belongs to no slot and an episode
lives in its snapshots. What a branch does depends on nothing but its episode, its candidate number and the turn: a
branch whose simulator crashed is played again with the same outcome, and the number of workers changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32, Int64

from vla_rl.envs.env import EpisodesLostError, Snapshot, VectorEnv
from vla_rl.evaluation.search.choosers import Moment, Picture, TurnActions
from vla_rl.policies.policy import Policy, decoded, tokens_of_turn
from vla_rl.runtime.seeding import generator
from vla_rl.types import EpisodeSpec, Observation, StepResult


@dataclass
class Cost:
    """What was spent, over all episodes. Rates are per turn that counts in the end."""

    turns: int = 0  # turns of the episodes as they were kept
    decisions: int = 0  # times a choice was made
    prefills: int = 0  # observations the policy looked at
    action_chunks: int = 0  # turns decoded by the policy
    simulator_turns: int = 0  # turns simulated, discarded ones included; not those lost in a crash
    scored: int = 0  # turns scored by the chooser
    chooser_calls: int = 0  # batches of them

    def per_turn(self, seconds: float) -> dict[str, float]:
        """Policy, simulator and chooser work for each turn kept."""
        turns = max(self.turns, 1)
        return {
            "prefills": self.prefills / turns,
            "action_chunks": self.action_chunks / turns,
            "simulator_turns": self.simulator_turns / turns,
            "scored": self.scored / turns,
            "chooser_calls": self.chooser_calls / turns,
            "seconds": seconds / turns,
        }


@dataclass(frozen=True)
class Sampling:
    """How candidates differ: the temperature, and whether the first one is greedy."""

    temperature: float
    seed: int
    greedy_first: bool

    def uniforms(
        self, spec: EpisodeSpec, turn: int, candidate: int, tokens: int
    ) -> Float32[np.ndarray, " K"]:
        """The randomness of one turn of one candidate.

        Candidate 0 is what plain evaluation plays. A candidate's number means the same in every decision of an episode:
        after its first turn was kept, the candidate of that number goes on as it did when it was looked ahead.
        """
        if self.greedy_first and candidate == 0:
            return np.full(tokens, np.nan, dtype=np.float32)
        keys = (spec.task, spec.initial_state, turn, *((candidate,) if candidate else ()))
        return generator(self.seed, *keys).random(tokens, np.float32)


@dataclass(frozen=True)
class PlayedTurn:
    """One turn of a branch."""

    tokens: list[int]
    action: Float32[np.ndarray, "C A"]
    before: tuple[Picture, ...]  # the last images, oldest first
    past: tuple[TurnActions, ...]  # what was done at each of them but the last
    after: tuple[Picture, ...]
    view: Observation  # what is seen after it, one row
    simulator_steps: int
    snapshot: Snapshot | None  # after it, where it was asked for and the episode goes on
    dense_reward: float | None  # likewise

    @property
    def past_after(self) -> tuple[TurnActions, ...]:
        """What was done at each of the images `before`."""
        return (*self.past, self.action)


@dataclass
class Branch:
    """A continuation of one episode: how it starts, and what came of it."""

    spec: EpisodeSpec
    candidate: int
    limit: int  # turns to play at most
    start: Snapshot | None = None  # None: the episode's initial state
    turn: int = 0  # turns of the episode before the branch
    frames: tuple[
        Picture, ...
    ] = ()  # the last images before its start, that of its start not among them
    past: tuple[TurnActions, ...] = ()  # what was done at each of these
    first: Int64[np.ndarray, " K"] | None = None  # tokens of its first turn, where decided already
    keep: frozenset[int] = frozenset()  # snapshots are taken after so many of its turns
    reward_every_turn: bool = False  # dense rewards of all turns, not of the last alone
    turns: list[PlayedTurn] = field(default_factory=list[PlayedTurn])
    success: bool = False
    ended: bool = False

    @property
    def done(self) -> bool:
        return self.ended or len(self.turns) >= self.limit

    def moment(self, index: int = -1) -> Moment:
        """One of its turns, the last one by default, as choosers see it."""
        index %= len(self.turns)
        played = self.turns[index]
        key = (self.spec.task, self.spec.initial_state, self.turn + index, self.candidate)
        return Moment(
            key,
            played.view.instructions[0],
            played.before,
            played.action,
            played.after,
            played.dense_reward,
            played.past,
        )


@dataclass
class _Place:
    """What a slot is doing."""

    branch: Branch
    view: Observation
    images: tuple[Picture, ...]  # the last ones, the present one included
    past: tuple[TurnActions, ...]  # what was done at each but the present one
    tokens: list[int] = field(default_factory=list[int])  # of the turn under way
    action: Float32[np.ndarray, "C A"] | None = None


class BranchPlayer:
    """Plays branches in all slots of a vector environment, one half inferring while the other simulates."""

    def __init__(
        self,
        policy: Policy,
        envs: VectorEnv,
        sampling: Sampling,
        cost: Cost,
        *,
        history: int = 1,
        dense_rewards: bool = False,
    ) -> None:
        """`history`: how many images choosers want to see; `dense_rewards`: ask the simulator for its own."""
        self._policy, self._envs, self._sampling, self.cost = policy, envs, sampling, cost
        self._history, self._dense = history, dense_rewards
        self.num_tokens = tokens_of_turn(policy)
        half = (envs.num_envs + 1) // 2
        self._groups = [list(range(half)), list(range(half, envs.num_envs))]
        self._temperature = sampling.temperature
        self._places: dict[int, _Place] = {}
        self._posted: dict[int, list[int]] = {0: [], 1: []}
        self._last_spec: dict[int, EpisodeSpec] = {}

    def play(self, branches: Sequence[Branch], temperature: float | None = None) -> None:
        """Play them all to their limit or their episode's end; fills in what came of each.

        `temperature`: other than that of the sampling.
        """
        self._temperature = self._sampling.temperature if temperature is None else temperature
        waiting = list(branches)
        for index in range(len(self._groups)):
            self._fill(index, waiting)
        while self._places:
            for index in range(len(self._groups)):
                self._receive(index)
                self._fill(index, waiting)
                self._act(index)

    # -- starting ------------------------------------------------------------------------------------

    def _fill(self, index: int, waiting: list[Branch]) -> None:
        """Give every free slot of a group a branch; one of the episode it holds already, if there is one."""
        fresh: dict[int, Branch] = {}
        free = [slot for slot in self._groups[index] if slot not in self._places]
        for slot in free[: len(waiting)]:
            held = self._last_spec.get(slot)
            fitting = (i for i, branch in enumerate(waiting) if branch.spec == held)
            fresh[slot] = waiting.pop(next(fitting, 0))
        self._start(fresh)

    def _start(self, fresh: dict[int, Branch]) -> None:
        """Put branches at their start, again and again should simulators crash meanwhile."""
        while fresh:
            restored = [slot for slot, branch in fresh.items() if branch.start is not None]
            snapshots = [start for b in fresh.values() if (start := b.start) is not None]
            reset = [slot for slot in fresh if slot not in restored]
            self._envs.post_restore(restored, snapshots)
            self._envs.post_reset(reset, [fresh[slot].spec for slot in reset])
            result = self._envs.wait(list(fresh))
            again: dict[int, Branch] = {}
            for row, (slot, branch) in enumerate(fresh.items()):
                if result.lost[row]:
                    again[slot] = branch
                    continue
                self.cost.simulator_turns -= len(branch.turns)  # lost, and played again
                branch.turns.clear()
                branch.success = branch.ended = False
                view = result.observation.select([row])
                images = (*branch.frames, view.images[0])[-self._history :]
                past = _last(branch.past, len(images) - 1)
                self._places[slot] = _Place(branch, view, images, past)
                self._last_spec[slot] = branch.spec
            fresh = again

    # -- one turn ------------------------------------------------------------------------------------

    def _act(self, index: int) -> None:
        """Decide the next turn of a group's branches and post it."""
        slots = [slot for slot in self._groups[index] if slot in self._places]
        if not slots:
            return
        tokens = np.zeros((len(slots), self.num_tokens), dtype=np.int64)
        open_rows: list[int] = []
        for row, slot in enumerate(slots):
            branch = self._places[slot].branch
            if branch.first is not None and not branch.turns:
                tokens[row] = branch.first
            else:
                open_rows.append(row)
        if open_rows:
            tokens[open_rows] = self._decide([self._places[slots[row]] for row in open_rows])
        actions = decoded(
            self._policy,
            torch.from_numpy(tokens),
            [self._places[slot].view.instructions[0] for slot in slots],
        )
        self._envs.post_step(slots, actions)
        self._posted[index] = slots
        for row, slot in enumerate(slots):
            self._places[slot].tokens = tokens[row].tolist()
            self._places[slot].action = actions[row]

    def _decide(self, places: Sequence[_Place]) -> Int64[np.ndarray, "S K"]:
        uniforms = [
            self._sampling.uniforms(
                place.branch.spec,
                place.branch.turn + len(place.branch.turns),
                place.branch.candidate,
                self.num_tokens,
            )
            for place in places
        ]
        view = Observation.concatenate([place.view for place in places])
        output = self._policy.act(view, self._temperature, np.stack(uniforms))
        self.cost.prefills += len(places)
        self.cost.action_chunks += len(places)
        return output.tokens.cpu().numpy()

    def _receive(self, index: int) -> None:
        """Take the outcome of a group's turn; free the slots whose branch is done, restart what was lost."""
        slots, self._posted[index] = self._posted[index], []
        if not slots:
            return
        result = self._envs.wait(slots)
        lost = [slot for row, slot in enumerate(slots) if result.lost[row]]
        rows = {slot: row for row, slot in enumerate(slots) if not result.lost[row]}
        try:
            snapshots = self._snapshots(rows, result)
            rewards = self._rewards(rows, result)
        except EpisodesLostError:
            lost, rows, snapshots, rewards = slots, {}, {}, {}
        self.cost.simulator_turns += len(rows)
        for slot, row in rows.items():
            self._record(slot, row, result, snapshots.get(slot), rewards.get(slot))
            if self._places[slot].branch.done:
                del self._places[slot]
        self._start({slot: self._places.pop(slot).branch for slot in lost})

    def _snapshots(self, rows: dict[int, int], result: StepResult) -> dict[int, Snapshot]:
        over = result.terminated | result.truncated
        branches = {slot: self._places[slot].branch for slot, row in rows.items() if not over[row]}
        slots = [slot for slot, b in branches.items() if len(b.turns) + 1 in b.keep]
        return dict(zip(slots, self._envs.snapshot(slots), strict=True)) if slots else {}

    def _rewards(self, rows: dict[int, int], result: StepResult) -> dict[int, float]:
        if not self._dense:
            return {}
        over = result.terminated | result.truncated
        slots = [
            slot
            for slot, row in rows.items()
            if (branch := self._places[slot].branch).reward_every_turn
            or over[row]
            or len(branch.turns) + 1 >= branch.limit
        ]
        if not slots:
            return {}
        return dict(zip(slots, self._envs.dense_rewards(slots).tolist(), strict=True))

    def _record(
        self,
        slot: int,
        row: int,
        result: StepResult,
        snapshot: Snapshot | None,
        dense_reward: float | None,
    ) -> None:
        place = self._places[slot]
        assert place.action is not None
        before, place.view = place.images, result.observation.select([row])
        past = place.past
        place.images = (*before, place.view.images[0])[-self._history :]
        place.past = _last((*past, place.action), len(place.images) - 1)
        place.branch.turns.append(
            PlayedTurn(
                place.tokens,
                place.action,
                before,
                past,
                place.images,
                place.view,
                int(result.simulator_steps[row]),
                snapshot,
                dense_reward,
            )
        )
        place.branch.success = bool(result.terminated[row])
        place.branch.ended = bool(result.terminated[row] or result.truncated[row])


def _last(actions: tuple[TurnActions, ...], count: int) -> tuple[TurnActions, ...]:
    return actions[len(actions) - count :]
