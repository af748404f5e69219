"""Candidates for the next turn: proposed by the policy in one batch, and chosen among by their actions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.search.branches import Cost, Sampling
from vla_rl.evaluation.search.choosers import Chooser, Moment, Picture
from vla_rl.policies.policy import Policy, decoded, tokens_of_turn
from vla_rl.types import EpisodeSpec, Observation


def propose(
    policy: Policy,
    observation: Observation,
    moments: Sequence[tuple[EpisodeSpec, int]],
    count: int,
    sampling: Sampling,
) -> Int64[Tensor, "S N K"]:
    """The tokens of candidates 0..count-1 for each observation, which belongs to a turn of an episode."""
    tokens = tokens_of_turn(policy)
    uniforms = [
        [sampling.uniforms(spec, turn, j, tokens) for j in range(count)] for spec, turn in moments
    ]
    return policy.propose(observation, sampling.temperature, np.array(uniforms)).tokens.cpu()


class ActionChoice:
    """Proposes N actions for each observation and plays the one that the chooser likes best."""

    def __init__(
        self, policy: Policy, chooser: Chooser, count: int, sampling: Sampling, cost: Cost
    ) -> None:
        self._policy, self._chooser, self._count = policy, chooser, count
        self._sampling, self._cost = sampling, cost
        self._frames: dict[EpisodeSpec, tuple[Picture, ...]] = {}

    def __call__(
        self, observation: Observation, records: Sequence[EpisodeRecord]
    ) -> Int64[Tensor, "S K"]:
        cost, count = self._cost, self._count
        moments = [(record.spec, record.turns) for record in records]
        proposed = propose(self._policy, observation, moments, count, self._sampling)
        cost.prefills += len(records)
        cost.action_chunks += len(records) * count
        cost.simulator_turns += len(records)
        if count == 1:
            return proposed[:, 0]
        scores = self._chooser.score(self._moments(observation, records, proposed))
        cost.decisions += len(records)
        cost.scored += len(scores)
        cost.chooser_calls += 1
        best = scores.reshape(len(records), count).argmax(1)
        return proposed[np.arange(len(records)), best]

    def _moments(
        self,
        observation: Observation,
        records: Sequence[EpisodeRecord],
        proposed: Int64[Tensor, "S N K"],
    ) -> list[Moment]:
        actions = decoded(
            self._policy,
            proposed.flatten(0, 1),
            [text for text in observation.instructions for _ in range(proposed.shape[1])],
        )
        moments: list[Moment] = []
        for row, record in enumerate(records):
            past = self._frames.get(record.spec, ()) if record.turns else ()
            seen = (*past, observation.images[row])[-self._chooser.history :]
            self._frames[record.spec] = seen
            for j in range(self._count):
                key = (record.spec.task, record.spec.initial_state, record.turns, j)
                action = actions[row * self._count + j]
                moments.append(Moment(key, observation.instructions[row], seen, action))
        return moments
