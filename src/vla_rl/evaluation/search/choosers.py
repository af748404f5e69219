"""Who picks among candidates: a process reward model, the simulator's own reward, or chance.

A chooser scores turns, all candidates of all environments in one call, and the highest score is taken. None of them
decides whether an episode succeeded: that is the simulator's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from vla_rl.config import UserError
from vla_rl.rewards.process.model import PastSteps, ProcessRewardModel
from vla_rl.runtime.seeding import generator

Picture = UInt8[np.ndarray, "H W 3"]
TurnActions = Float32[np.ndarray, "C A"]
"""Of one turn, in the simulator's units."""


@dataclass(frozen=True)
class Moment:
    """One turn of one candidate, played or only proposed, as choosers see it."""

    key: tuple[str | int, ...]  # task, initial state, turn, candidate: names it for randomness
    instruction: str
    before: tuple[Picture, ...]  # the last images up to the decision, oldest first, at least one
    action: Float32[np.ndarray, "C A"]  # simulator units
    after: tuple[Picture, ...] = ()  # the last images once it was played; none if only proposed
    dense_reward: float | None = None  # the simulator's, of the state after it; only if asked for
    past: tuple[TurnActions, ...] = ()  # what was done at each of the images `before` but the last


class Chooser(Protocol):
    """Scores turns; a higher score is better."""

    history: int  # images a moment must hold, if there have been so many
    needs_dense_reward: bool
    needs_outcome: bool  # scores only what has been played
    scores_progress: bool  # the score is of the state reached; a turn's own worth is its rise
    blind: bool  # looks at nothing

    def score(self, moments: Sequence[Moment]) -> Float32[np.ndarray, " B"]: ...

    def shares(self, scores: Float64[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
        """The scores as numbers of which a mean over turns means something, 0 to 1 where they are probabilities."""
        ...


class RewardModelChooser:
    """A process reward model's log-odds.

    A reward model that sees actions is shown the images before the turn and the turn's action. One that does not is
    shown what the turn has led to; one that reads the steps so far, the actions that led there as well.
    """

    needs_dense_reward = False
    scores_progress = False
    blind = False

    def __init__(self, reward_model: ProcessRewardModel) -> None:
        self._reward_model = reward_model
        self.history = reward_model.description.history
        self.needs_outcome = not reward_model.sees_actions

    def score(self, moments: Sequence[Moment]) -> Float32[np.ndarray, " B"]:
        if not moments:
            return np.zeros(0, dtype=np.float32)
        instructions = [moment.instruction for moment in moments]
        if self._reward_model.sees_actions:
            actions = np.stack([moment.action for moment in moments])
            images = [moment.before for moment in moments]
            return self._reward_model.log_odds(self._stack(images), instructions, actions)
        images = [moment.after for moment in moments]
        if self._reward_model.description.reads_past:
            past = self._past(moments)
            return self._reward_model.log_odds(self._stack(images), instructions, None, past)
        return self._reward_model.log_odds(self._stack(images), instructions, None)

    def shares(self, scores: Float64[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
        """The probabilities, or progress: the sigmoid of the scores."""
        return 0.5 * (1.0 + np.tanh(0.5 * scores))

    def _past(self, moments: Sequence[Moment]) -> PastSteps:
        """What was done at each image of a turn's outcome but the last, the turn's own action included."""
        description = self._reward_model.description
        steps = self.history - 1
        shape = (len(moments), steps, description.action_chunk, description.action_size)
        taken, count = np.zeros(shape, np.float32), np.zeros(len(moments), np.int64)
        for row, moment in enumerate(moments):
            count[row] = min(steps, len(moment.after) - 1)
            if moment.action.shape != shape[2:]:
                raise UserError(
                    f"the reward model was trained on turns of {shape[2]} action(s) of size {shape[3]}, the policy "
                    f"decides {moment.action.shape[0]} of size {moment.action.shape[1]}: train one on this policy's "
                    "episodes"
                )
            own = (*moment.past, moment.action)
            for place in range(1, int(count[row]) + 1):
                taken[row, -place] = own[-place]
        return PastSteps(taken, count)

    def _stack(self, images: Sequence[tuple[Picture, ...]]) -> UInt8[np.ndarray, "B *F H W 3"]:
        """As the reward model takes them; before an episode's first image that one is repeated."""
        if self.history == 1:
            return np.stack([seen[-1] for seen in images])
        filled = [(seen[0],) * (self.history - len(seen)) + seen for seen in images]
        return np.stack([np.stack(seen[-self.history :]) for seen in filled])


class SimulatorChooser:
    """The simulator's own dense reward of the state that a turn has led to. Privileged: an upper bound."""

    history = 1
    needs_dense_reward = True
    needs_outcome = True
    scores_progress = True
    blind = False

    def score(self, moments: Sequence[Moment]) -> Float32[np.ndarray, " B"]:
        rewards = [moment.dense_reward for moment in moments]
        assert None not in rewards, "dense rewards are asked of the simulator where needed"
        return np.array(rewards, dtype=np.float32)

    def shares(self, scores: Float64[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
        """The rewards themselves."""
        return scores


class RandomChooser:
    """Chance, fixed by (seed, task, initial state, turn, candidate): a lower bound."""

    history = 1
    needs_dense_reward = False
    needs_outcome = False
    scores_progress = False
    blind = True

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def score(self, moments: Sequence[Moment]) -> Float32[np.ndarray, " B"]:
        draws = [generator(self._seed, "choose", *m.key).random(dtype=np.float32) for m in moments]
        return np.array(draws, dtype=np.float32)

    def shares(self, scores: Float64[np.ndarray, " B"]) -> Float64[np.ndarray, " B"]:
        """The draws themselves."""
        return scores


def make_chooser(name: str, reward_model: ProcessRewardModel | None, seed: int) -> Chooser:
    """The chooser of `BestOfConfig.chooser`; "success" is chance where no candidate has succeeded.

    UserError for "reward-model" without one.
    """
    if name == "reward-model":
        if reward_model is None:
            raise UserError(
                "choosing by a reward model needs one: expected the folder of a process reward model (`vla-rl reward "
                "train`). Without one choose by random, success or simulator"
            )
        return RewardModelChooser(reward_model)
    return SimulatorChooser() if name == "simulator" else RandomChooser(seed)
