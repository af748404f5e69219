"""The arrays one rollout window fills, turn by turn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int64

from vla_rl.distributed.shards import Shards
from vla_rl.envs.env import VectorEnv
from vla_rl.policies.policy import PolicyOutput
from vla_rl.rollout.engine import Player, Valuing
from vla_rl.types import EpisodeSpec, Observation, Rollout, StepResult


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that ended in this window."""

    spec: EpisodeSpec
    success: bool
    turns: int
    number: int  # as in `Rollout.episode_ids`
    group: int  # as in `Rollout.group_ids`
    turn: int  # of the window, in which it ended


@dataclass
class Playing:
    """The episode that an environment plays, as far as it has come."""

    spec: EpisodeSpec
    number: int  # as in `Rollout.episode_ids`
    group: int  # as in `Rollout.group_ids`
    turns: int = 0
    window_start: int = 0  # its first turn inside the window
    actions: list[list[int]] = field(default_factory=list)  # tokens so far, to replay on resume


EMPTY = {"episode_ids": -1, "group_ids": -1, "simulator_rewards": np.nan}
"""What stands in an array where nothing was played; 0 in the others."""


class RolloutBuffer:
    """M turns of N environments, being filled. See `Rollout` for what each array means."""

    def __init__(
        self,
        num_turns: int,
        envs: VectorEnv,
        num_tokens: int,
        example: Observation,
        ask_simulator: bool = False,
        shards: Shards | None = None,
        version: int = 0,
    ) -> None:
        """`ask_simulator`: keep its dense rewards too. `version`: of the learner's own weights."""
        m, n = num_turns, envs.num_envs
        self.shards, self.version = shards or Shards(n, 1), version
        self.tasks, self.instructions, self.num_tokens = envs.tasks, envs.instructions, num_tokens
        self.images = np.zeros((m, n, *example.images.shape[1:]), np.uint8)
        self.proprio = np.zeros((m, n, example.proprio.shape[1]), np.float32)
        self.time_fraction = np.zeros((m, n), np.float32)
        self.task_ids = np.zeros((m, n), np.int64)
        self.initial_states = np.zeros((m, n), np.int64)
        self.episode_ids = np.full((m, n), -1, np.int64)
        self.group_ids = np.full((m, n), -1, np.int64)
        self.tokens = np.zeros((m, n, num_tokens), np.int64)
        self.log_probs = np.zeros((m, n, num_tokens), np.float32)
        self.values = np.zeros((m, n), np.float32)
        self.versions = np.zeros((m, n), np.int64)
        self.assisted = np.zeros((m, n), bool)
        self.rewards = np.zeros((m, n), np.float32)
        self.terminated, self.truncated = np.zeros((m, n), bool), np.zeros((m, n), bool)
        self.succeeded, self.valid = np.zeros((m, n), bool), np.zeros((m, n), bool)
        self.simulator_rewards = np.full((m, n), np.nan, np.float32) if ask_simulator else None
        self.simulator_steps = 0
        self.finished: list[FinishedEpisode] = []
        self._cut: list[tuple[int, int]] = []  # (turn, slot) ended by the time limit
        self._cut_observations: list[Observation] = []

    def record_decision(
        self,
        turn: int,
        slots: Int64[np.ndarray, " S"],
        observation: Observation,
        output: PolicyOutput,
        tokens: Int64[np.ndarray, "S K"],
        episodes: list[Playing],
    ) -> None:
        """Keep what the policy saw and said."""
        specs = [episode.spec for episode in episodes]
        self.images[turn, slots] = observation.images
        self.proprio[turn, slots] = observation.proprio
        self.time_fraction[turn, slots] = observation.time_fraction
        self.task_ids[turn, slots] = [self.tasks.index(spec.task) for spec in specs]
        self.initial_states[turn, slots] = [spec.initial_state for spec in specs]
        self.episode_ids[turn, slots] = [episode.number for episode in episodes]
        self.group_ids[turn, slots] = [episode.group for episode in episodes]
        self.assisted[turn, slots] = [spec.start is not None for spec in specs]
        self.tokens[turn, slots] = tokens
        self.log_probs[turn, slots] = output.log_probs.float().cpu().numpy()
        self.versions[turn, slots] = self.version if output.version is None else output.version
        if output.values is not None:  # zeros for a policy without a critic
            self.values[turn, slots] = output.values.float().cpu().numpy()

    def record_outcome(self, turn: int, slots: Int64[np.ndarray, " S"], result: StepResult) -> None:
        """Keep what the simulators answered; a lost turn has no outcome and is marked invalid."""
        self.rewards[turn, slots] = np.where(result.lost, 0.0, result.rewards)
        self.terminated[turn, slots] = result.terminated & ~result.lost
        self.truncated[turn, slots] = result.truncated & ~result.lost
        self.valid[turn, slots] = ~result.lost
        self.simulator_steps += int(result.simulator_steps.sum())
        cut = np.flatnonzero(result.truncated & ~result.lost)
        if len(cut):
            self._cut += [(turn, int(slots[row])) for row in cut]
            self._cut_observations.append(result.observation.select(cut))

    def finish_episode(
        self, slot: int, start: int, end: int, episode: Playing, success: bool
    ) -> None:
        """Mark the turns start..end of `slot` with how their episode ended."""
        self.succeeded[start : end + 1, slot] = success
        self.finished.append(
            FinishedEpisode(
                episode.spec, success, episode.turns, episode.number, episode.group, end
            )
        )

    def drop_episode(self, slot: int, start: int, end: int) -> None:
        """Take the turns start..end of `slot` for lost: their episode has no outcome."""
        self.valid[start : end + 1, slot] = False

    def grow(self) -> None:
        """Make room for as many turns again."""
        for name in self._per_turn():
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.full_like(array, EMPTY.get(name, 0))]))

    def trim(self, num_turns: int) -> None:
        """Keep the first `num_turns` turns alone."""
        for name in self._per_turn():
            setattr(self, name, getattr(self, name)[:num_turns].copy())

    def _per_turn(self) -> list[str]:
        return [name for name, value in vars(self).items() if isinstance(value, np.ndarray)]

    @property
    def num_turns(self) -> int:
        return len(self.rewards)

    def finish(self, player: Player, following: Observation | None, temperature: float) -> Rollout:
        """Value what follows the window, if anything does, and the true final observations; freeze the arrays."""
        final_values, next_values = np.zeros_like(self.values), np.zeros_like(self.values[0])
        next_images = np.zeros_like(self.images[0]) if following is None else following.images
        if isinstance(player, Valuing):
            with torch.no_grad():
                if following is not None:
                    next_values = player.values(following).float().cpu().numpy()
                if self._cut:
                    values = player.values(Observation.concatenate(self._cut_observations))
                    turns, slots = zip(*self._cut, strict=True)
                    final_values[list(turns), list(slots)] = values.float().cpu().numpy()
        return Rollout(
            images=self.images,
            task_ids=self.task_ids,
            tasks=self.tasks,
            instructions=self.instructions,
            initial_states=self.initial_states,
            episode_ids=self.episode_ids,
            group_ids=self.group_ids,
            proprio=self.proprio,
            time_fraction=self.time_fraction,
            tokens=self.tokens,
            log_probs=self.log_probs,
            values=self.values,
            rewards=self.rewards,
            terminated=self.terminated,
            truncated=self.truncated,
            final_values=final_values,
            next_values=next_values,
            next_images=next_images,
            succeeded=self.succeeded,
            valid=self.valid,
            temperature=temperature,
            simulator_rewards=self.simulator_rewards,
            versions=self.versions,
            assisted=self.assisted,
            shards=self.shards.by_env()[self.shards.own_envs.start : self.shards.own_envs.stop],
        )
