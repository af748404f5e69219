"""The actor-environment loop: play M turns in every environment, and nothing else.

The environments are driven in two groups. While one group simulates, the policy infers for the other, so
simulators and inference overlap, yet the batches never depend on who was faster: the same seed
gives the same rollout to the bit, with any number of worker processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from vla_rl.envs.env import EpisodesLostError, VectorEnv
from vla_rl.policies.policy import Policy
from vla_rl.rollout.buffer import FinishedEpisode, RolloutBuffer
from vla_rl.runtime.seeding import generator
from vla_rl.types import EpisodeSpec, Observation, Rollout, StepResult


@dataclass
class SlotState:
    """What one environment is playing."""

    spec: EpisodeSpec
    turns: int = 0  # of the running episode
    window_start: int = 0  # first turn of the running episode inside the window
    actions: list[list[int]] = field(
        default_factory=list
    )  # action tokens so far, to replay on resume


@dataclass(frozen=True)
class Collected:
    """A window of play, the episodes that ended in it, and what it cost."""

    rollout: Rollout
    finished: list[FinishedEpisode]
    simulator_steps: int
    seconds: dict[str, float]  # simulate (waiting for simulators), infer, other


class Collector:
    """Plays windows of M turns in N environments; episodes run on across window edges.

    `draw` gives the next episode (the curriculum), `observe` is told how each one ended. Crashed episodes
    are played again and never observed.
    """

    def __init__(
        self,
        policy: Policy,
        envs: VectorEnv,
        draw: Callable[[], EpisodeSpec],
        observe: Callable[[str, bool], None],
        seed: int,
        dense_reward_max: float | None = None,
    ) -> None:
        """`dense_reward_max`: also ask the simulator for its own dense reward after each turn (privileged), and divide
        it by this number, what a solved task gives (`Benchmark.dense_reward_max`). None: it is not asked.
        """
        self.policy, self.envs, self.draw, self.observe, self.seed = (
            policy,
            envs,
            draw,
            observe,
            seed,
        )
        self.dense_reward_max = dense_reward_max
        self.task_index = {task: i for i, task in enumerate(envs.tasks)}
        half = (envs.num_envs + 1) // 2
        slots = np.arange(envs.num_envs)
        self.groups = [group for group in (slots[:half], slots[half:]) if len(group)]
        self.slots: list[SlotState] = []
        self.current: list[Observation] = []  # per group: what its slots see now

    def start(self) -> None:
        """Start a first episode in every environment."""
        self.slots = [SlotState(self.draw()) for _ in range(self.envs.num_envs)]
        self._reset_all()

    def _reset_all(self) -> None:
        for group in self.groups:
            self.envs.post_reset(list(group), [self.slots[i].spec for i in group])
        self.current = [self._wait_until_reset(group).observation for group in self.groups]

    def collect(self, num_turns: int, temperature: float, iteration: int) -> Collected:
        """Play `num_turns` turns in every environment."""
        num_tokens = self.policy.action_chunk * self.policy.action_dim
        window = RolloutBuffer(
            num_turns,
            self.envs,
            num_tokens,
            self.current[0],
            ask_simulator=self.dense_reward_max is not None,
        )
        for state in self.slots:
            state.window_start = 0
        clock = _Clock()
        uniforms = generator(self.seed, "rollout", iteration).random(
            (num_turns, self.envs.num_envs, window.num_tokens), dtype=np.float32
        )
        for turn in range(num_turns):
            for index, group in enumerate(self.groups):
                if turn > 0:
                    self._receive(index, window, turn - 1, clock)
                self._act(index, window, turn, temperature, uniforms[turn, group], clock)
        for index in range(len(self.groups)):
            self._receive(index, window, num_turns - 1, clock)
        clock.switch("infer")
        rollout = window.finish(self.policy, Observation.concatenate(self.current), temperature)
        return Collected(rollout, window.finished, window.simulator_steps, clock.stop())

    def _act(
        self,
        index: int,
        window: RolloutBuffer,
        turn: int,
        temperature: float,
        uniforms: Float32[np.ndarray, "S K"],
        clock: _Clock,
    ) -> None:
        group = self.groups[index]
        clock.switch("infer")
        output = self.policy.act(self.current[index], temperature, uniforms)
        actions = self.policy.decode_actions(output.tokens)
        clock.switch("other")
        self.envs.post_step(list(group), actions)
        tokens = output.tokens.cpu().numpy()
        window.record_decision(
            turn, group, self.current[index], output, tokens, [self.slots[i].spec for i in group]
        )
        for row, slot in enumerate(group):
            self.slots[slot].actions.append(tokens[row].tolist())

    def _receive(self, index: int, window: RolloutBuffer, turn: int, clock: _Clock) -> None:
        """Take the outcome of `turn` and give every ended slot its next episode."""
        group = self.groups[index]
        clock.switch("simulate")
        result = self.envs.wait(list(group))
        clock.switch("other")
        window.record_outcome(turn, group, result)
        if window.simulator_rewards is not None:  # before any reset
            window.simulator_rewards[turn, group] = self._simulator_rewards(group, result.lost)
        restarted: list[int] = []
        for row, slot in enumerate(group):
            state = self.slots[slot]
            state.turns += 1
            ended = bool(result.terminated[row] or result.truncated[row])
            if result.lost[row]:
                self.slots[slot] = SlotState(state.spec, window_start=turn + 1)
            elif ended:
                success = bool(result.terminated[row])
                self.observe(state.spec.task, success)
                window.finish_episode(
                    slot,
                    state.window_start,
                    turn,
                    FinishedEpisode(state.spec, success, state.turns),
                )
                self.slots[slot] = SlotState(self.draw(), window_start=turn + 1)
            if result.lost[row] or ended:
                restarted.append(row)
        self.current[index] = result.observation
        if restarted:
            slots = [int(group[row]) for row in restarted]
            self.envs.post_reset(slots, [self.slots[i].spec for i in slots])
            clock.switch("simulate")
            fresh = self._wait_until_reset(slots).observation
            clock.switch("other")
            self.current[index] = _replace_rows(result.observation, restarted, fresh)

    def _simulator_rewards(
        self, group: Int64[np.ndarray, " S"], lost: Bool[np.ndarray, " S"]
    ) -> Float32[np.ndarray, " S"]:
        assert self.dense_reward_max is not None
        rewards = np.full(len(group), np.nan, np.float32)
        with suppress(EpisodesLostError):  # they come back as lost on the next turn
            asked = self.envs.dense_rewards([int(slot) for slot in group[~lost]])
            rewards[~lost] = np.clip(asked / self.dense_reward_max, 0, 1)
        return rewards

    def _wait_until_reset(self, slots: Any) -> StepResult:
        """Wait for resets; a worker that crashes while resetting is asked again (it has been restarted)."""
        slots = [int(i) for i in slots]
        result = self.envs.wait(slots)
        while result.lost.any():
            again = [slots[row] for row in np.flatnonzero(result.lost)]
            self.envs.post_reset(again, [self.slots[i].spec for i in again])
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
        """JSON: each slot's episode and the actions played in it so far; enough to rebuild it exactly."""
        return {"slots": [[s.spec.task, s.spec.initial_state, [*s.actions]] for s in self.slots]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Rebuild every running episode: reset it and play its actions again (simulators are deterministic)."""
        rows = state["slots"]
        if len(rows) != self.envs.num_envs:
            raise ValueError(
                f"saved with {len(rows)} environments, now there are {self.envs.num_envs}"
            )
        self.slots = [
            SlotState(EpisodeSpec(task, int(i)), len(actions), 0, [list(a) for a in actions])
            for task, i, actions in rows
        ]
        self._reset_all()
        for turn in range(max((s.turns for s in self.slots), default=0)):
            behind = [i for i, s in enumerate(self.slots) if s.turns > turn]
            tokens = torch.tensor([self.slots[i].actions[turn] for i in behind])
            self.envs.post_step(behind, self.policy.decode_actions(tokens))
            result = self.envs.wait(behind)
            for index, group in enumerate(self.groups):
                members = {int(slot): row for row, slot in enumerate(group)}
                pairs = [(members[slot], row) for row, slot in enumerate(behind) if slot in members]
                if pairs:
                    target, source = [p[0] for p in pairs], [p[1] for p in pairs]
                    fresh = result.observation.select(source)
                    self.current[index] = _replace_rows(self.current[index], target, fresh)


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


class _Clock:
    """Splits wall time between named activities."""

    def __init__(self) -> None:
        self.seconds = {"simulate": 0.0, "infer": 0.0, "other": 0.0}
        self.activity, self.since = "other", time.perf_counter()

    def switch(self, activity: str) -> None:
        now = time.perf_counter()
        self.seconds[self.activity] += now - self.since
        self.activity, self.since = activity, now

    def stop(self) -> dict[str, float]:
        self.switch("other")
        return self.seconds
