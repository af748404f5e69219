"""The arrays one rollout window fills, turn by turn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from vla_rl.envs.env import VectorEnv
from vla_rl.policies.policy import Policy, PolicyOutput, ValuePolicy
from vla_rl.types import EpisodeSpec, Observation, Rollout, StepResult


@dataclass(frozen=True)
class FinishedEpisode:
    """An episode that ended in this window."""

    spec: EpisodeSpec
    success: bool
    turns: int


class RolloutBuffer:
    """M turns of N environments, being filled. See `Rollout` for what each array means."""

    def __init__(
        self,
        num_turns: int,
        envs: VectorEnv,
        num_tokens: int,
        example: Observation,
        ask_simulator: bool = False,
    ) -> None:
        """`ask_simulator`: keep its dense rewards too."""
        m, n = num_turns, envs.num_envs
        self.tasks, self.instructions, self.num_tokens = envs.tasks, envs.instructions, num_tokens
        self.images = np.zeros((m, n, *example.images.shape[1:]), np.uint8)
        self.proprio = np.zeros((m, n, example.proprio.shape[1]), np.float32)
        self.time_fraction = np.zeros((m, n), np.float32)
        self.task_ids = np.zeros((m, n), np.int64)
        self.initial_states = np.zeros((m, n), np.int64)
        self.tokens = np.zeros((m, n, num_tokens), np.int64)
        self.log_probs = np.zeros((m, n, num_tokens), np.float32)
        self.values = np.zeros((m, n), np.float32)
        self.rewards = np.zeros((m, n), np.float32)
        self.terminated, self.truncated = np.zeros((m, n), bool), np.zeros((m, n), bool)
        self.succeeded, self.valid = np.zeros((m, n), bool), np.ones((m, n), bool)
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
        specs: list[EpisodeSpec],
    ) -> None:
        """Keep what the policy saw and said."""
        self.images[turn, slots] = observation.images
        self.proprio[turn, slots] = observation.proprio
        self.time_fraction[turn, slots] = observation.time_fraction
        self.task_ids[turn, slots] = [self.tasks.index(spec.task) for spec in specs]
        self.initial_states[turn, slots] = [spec.initial_state for spec in specs]
        self.tokens[turn, slots] = tokens
        self.log_probs[turn, slots] = output.log_probs.float().cpu().numpy()
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

    def finish_episode(self, slot: int, start: int, end: int, episode: FinishedEpisode) -> None:
        """Mark the turns start..end of `slot` with how their episode ended."""
        self.succeeded[start : end + 1, slot] = episode.success
        self.finished.append(episode)

    def finish(self, policy: Policy, following: Observation, temperature: float) -> Rollout:
        """Value what follows the window and the true final observations, and freeze the arrays."""
        final_values, next_values = np.zeros_like(self.values), np.zeros_like(self.values[0])
        if isinstance(policy, ValuePolicy):
            with torch.no_grad():
                next_values = policy.values(following).float().cpu().numpy()
                if self._cut:
                    values = policy.values(Observation.concatenate(self._cut_observations))
                    turns, slots = zip(*self._cut, strict=True)
                    final_values[list(turns), list(slots)] = values.float().cpu().numpy()
        return Rollout(
            images=self.images,
            task_ids=self.task_ids,
            tasks=self.tasks,
            instructions=self.instructions,
            initial_states=self.initial_states,
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
            next_images=following.images,
            succeeded=self.succeeded,
            valid=self.valid,
            temperature=temperature,
            simulator_rewards=self.simulator_rewards,
        )
