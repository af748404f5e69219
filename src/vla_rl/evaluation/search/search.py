"""What all decisions of one evaluation with best of N share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from vla_rl.config.search import BestOfConfig
from vla_rl.envs.env import VectorEnv
from vla_rl.evaluation.episodes import EpisodeRecord
from vla_rl.evaluation.search.branches import BranchPlayer, Cost, PlayedTurn, Sampling
from vla_rl.evaluation.search.choosers import Chooser, Moment
from vla_rl.policies.policy import Policy

OnEpisode = Callable[[EpisodeRecord], None]


def succeeds_first(config: BestOfConfig) -> bool:
    """Whether a candidate that has reached success in the simulator is taken without asking the chooser."""
    if config.mode == "lookahead":
        return config.success_ahead and config.chooser != "random"
    return config.chooser in ("simulator", "success")


class Search:
    """What all decisions of one evaluation share."""

    def __init__(
        self,
        policy: Policy,
        envs: VectorEnv,
        config: BestOfConfig,
        chooser: Chooser,
        seed: int,
        on_episode: OnEpisode | None,
    ) -> None:
        self.policy, self.envs, self.config, self.chooser = policy, envs, config, chooser
        self.sampling = Sampling(config.temperature, seed, config.greedy_first)
        self.cost = Cost()
        self.succeeds_first = succeeds_first(config)
        self.choosing = config.best_of > 1
        self.player = BranchPlayer(
            policy,
            envs,
            self.sampling,
            self.cost,
            history=chooser.history,
            dense_rewards=self.choosing and chooser.needs_dense_reward,
        )
        self._on_episode = on_episode

    def score(self, moments: Sequence[Moment]) -> Float32[np.ndarray, " B"]:
        """One call of the chooser for all moments."""
        if not moments:
            return np.zeros(0, dtype=np.float32)
        self.cost.scored += len(moments)
        self.cost.chooser_calls += 1
        return self.chooser.score(moments)

    def finish(self, record: EpisodeRecord) -> None:
        """Count an episode that has come to its end."""
        self.cost.turns += record.turns
        if self._on_episode is not None:
            self._on_episode(record)


def append_turns(record: EpisodeRecord, turns: Sequence[PlayedTurn]) -> None:
    """Make these turns part of an episode."""
    record.turns += len(turns)
    record.simulator_steps += sum(turn.simulator_steps for turn in turns)
    record.tokens += [turn.tokens for turn in turns]
