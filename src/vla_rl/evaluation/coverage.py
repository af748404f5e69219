"""Action coverage: how far the actions of a policy spread, where it comes by itself and where it is put.

Two questions, which are easily taken for one. On its own way a policy meets other states after practice than before, so
that its actions may spread more because its states do. In the same states its actions alone are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from vla_rl.envs.env import VectorEnv
from vla_rl.evaluation.episodes import EpisodeRecord, by_itself, play_each_once
from vla_rl.functional.intervals import Interval
from vla_rl.functional.spread import entropy_terms, mean_over_groups, percentiles
from vla_rl.policies.policy import Policy, decoded, tokens_of_turn
from vla_rl.runtime.seeding import generator
from vla_rl.types import EpisodeSpec, Observation

BATCH = 128
NEIGHBOURS = 4
RESAMPLES = 1000


@dataclass(frozen=True)
class Visits:
    """Sampled episodes of a policy, with what it saw and did."""

    states: Observation  # of n turns
    turns: tuple[tuple[int, int], ...]  # (index of the episode, turn) of each state
    tokens: Int64[np.ndarray, "n K"]


def visit(
    policy: Policy,
    envs: VectorEnv,
    specs: Sequence[EpisodeSpec],
    temperature: float,
    seed: int,
    on_episode: Callable[[EpisodeRecord], None] | None = None,
) -> Visits:
    """Play every spec once, sampled, and keep all states and actions, in the order of `specs`."""
    plain = by_itself(policy, temperature, seed)
    number = {spec: place for place, spec in enumerate(specs)}
    seen: dict[tuple[int, int], tuple[Observation, list[int]]] = {}

    def decide(observation: Observation, records: Sequence[EpisodeRecord]) -> Int64[Tensor, "S K"]:
        tokens = plain(observation, records)
        for row, (record, chosen) in enumerate(zip(records, tokens.cpu().tolist(), strict=True)):
            # an episode that was lost with its simulator is seen again, and overwritten
            seen[number[record.spec], record.turns] = (observation.select([row]), chosen)
        return tokens

    records = play_each_once(
        policy,
        envs,
        specs,
        temperature=temperature,
        seed=seed,
        on_episode=on_episode,
        decide=decide,
    )
    keys = sorted(key for key in seen if key[1] < records[key[0]].turns)
    return Visits(
        Observation.concatenate([seen[key][0] for key in keys]),
        tuple(keys),
        np.array([seen[key][1] for key in keys], dtype=np.int64),
    )


def sampled_tokens(
    policy: Policy,
    visits: Visits,
    specs: Sequence[EpisodeSpec],
    temperature: float,
    seed: int,
) -> Int64[np.ndarray, "n K"]:
    """What the policy decides in states that were visited, by it or by another; randomness keyed by the state."""
    width = tokens_of_turn(policy)
    chosen = []
    for start in range(0, len(visits.turns), BATCH):
        rows = np.arange(start, min(start + BATCH, len(visits.turns)))
        draws = []
        for row in rows.tolist():
            episode, turn = visits.turns[row]
            spec = specs[episode]
            draws.append(
                generator(seed, "coverage", spec.task, spec.initial_state, turn).random(
                    width, np.float32
                )
            )
        output = policy.act(visits.states.select(rows), temperature, np.stack(draws))
        chosen.append(output.tokens.cpu().numpy())
    return np.concatenate(chosen)


def single_actions(
    policy: Policy, tokens: Int64[np.ndarray, "n K"], visits: Visits
) -> tuple[Float64[np.ndarray, "m A"], Int64[np.ndarray, " m"]]:
    """Every action of every turn as the simulator gets it, and the episode each belongs to, m = n C."""
    import torch

    told = visits.states.instructions
    actions = np.asarray(decoded(policy, torch.from_numpy(tokens), told), dtype=np.float64)
    episodes = np.repeat([episode for episode, _ in visits.turns], actions.shape[1])
    return actions.reshape(-1, actions.shape[-1]), episodes.astype(np.int64)


@dataclass(frozen=True)
class Entropy:
    """Entropy in nats with its interval over episodes, and the resampled values to take differences of."""

    value: float
    interval: Interval
    resampled: Float64[np.ndarray, " R"]

    def less(self, other: Entropy) -> tuple[float, Interval]:
        """Difference to another one over the same resampled initial states, with its interval."""
        return self.value - other.value, percentiles(self.resampled - other.resampled)


def entropy_of(
    actions: Float64[np.ndarray, "m D"],
    episodes: Int64[np.ndarray, " m"],
    resamples: Int64[np.ndarray, "R G"],
    bounds: Float64[np.ndarray, "2 D"],
) -> Entropy:
    """Differential entropy of actions that lie within `bounds`. ValueError for too few of them."""
    terms = entropy_terms(actions, NEIGHBOURS, bounds)
    value, interval, resampled = mean_over_groups(terms, episodes, resamples)
    return Entropy(value, interval, resampled)


def resampled_episodes(count: int, seed: int) -> Int64[np.ndarray, "R G"]:
    """Which episodes each bootstrap sample holds."""
    rng = generator(seed, "coverage", "bootstrap")
    return rng.integers(0, count, size=(RESAMPLES, count), dtype=np.int64)
