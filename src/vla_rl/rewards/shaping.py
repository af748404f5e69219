"""From scores to a dense reward that is safe to add to success.

    additive     r_t = w p(o_t, a_t) / H                         every turn is paid for what is seen in it
                 on success: w (1 + g + ... + g^(n-1)) / H       n = the turns that were left, this one included
    potential    r_t = g Phi(o_{t+1}) - Phi(o_t), Phi = w p      progress is paid, and its loss is taken back
    progress     r_t = Phi(o_{t+1}) - Phi(o_t), Phi = w at success; the critic does not learn it

p in 0..1 is the score: a reward model's probability of its positive answer, or the simulator's own reward. w is
`reward.weight`, H the horizon in turns, g the discount `ppo.gamma` (1 where whole
episodes are compared). The rewards decide neither success nor checkpoints
nor the curriculum.

Additive. Paying every turn and ending the pay with success would make success costly: where w p / H > 1 - g, one more
turn of waiting is worth more than finishing now. So success counts as an absorbing state with the best score, in which
the rest of the episode is spent (Kostrikov et al. 2019, arXiv 1809.02925). Finishing is then worth at least as much as
any other way to go on from the same turn: it pays success undiscounted, and the best score for all turns that are left.

Potential. Discounted over an episode it adds up to -Phi(o_0), whatever was done in it: for any weight the policies are
ranked as by success alone (Ng, Harada, Russell 1999, theorem 1). So it is never clipped, which would break the sum. An
observation between two windows keeps the potential of the first: the reward model may be another one in the second, and
the theorem holds for potentials that change with time as well (Devlin, Kudenko 2012).

Progress. It adds up to Phi at the end less Phi at the beginning, so it lies within plus and minus w and needs no bound.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int64

from vla_rl.config import EnvConfig, ProcessRewardConfig, TrainConfig, UserError
from vla_rl.envs.registry import settings_of, suites_of, task_names
from vla_rl.rewards.hacking_monitor import RewardHackingMonitor
from vla_rl.types import Rollout

_LOG = logging.getLogger(__name__)


class Scorer(Protocol):
    """Says how good each moment of a window looks, 0..1."""

    def scores(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        """Of what was seen before each turn."""
        ...

    def following(self, rollout: Rollout) -> Float32[np.ndarray, " N"]:
        """Of what follows the window. Asked after `scores`."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class ShapedReward:
    """A scorer as a `RewardFunction`."""

    def __init__(
        self,
        scorer: Scorer,
        config: ProcessRewardConfig,
        *,
        gamma: float,
        horizon: int | Mapping[str, int],
        time_limit_is_terminal: bool = True,
    ) -> None:
        """`gamma` is the discount of the returns, `horizon` an episode's most turns, by task where they differ."""
        self.scorer = scorer
        self._config, self._gamma, self._horizon = config, gamma, horizon
        self._endless = not time_limit_is_terminal
        self._potential: Float32[np.ndarray, " N"] | None = (
            None  # at the window's edge; NaN: a new episode
        )
        self._scale = RunningScale()
        self._monitor = RewardHackingMonitor()
        self._last: dict[str, float] = {}
        weight = self._weight(1.0)
        if weight < config.weight:
            _LOG.warning(
                "reward.weight is %.3g instead of %g: with more an episode's dense rewards could add up to more than "
                "reward.limit = %g%s",
                weight,
                config.weight,
                config.limit,
                ", as a success is paid for all time to come where time limits bootstrap"
                if self._endless
                else "",
            )

    @property
    def in_return(self) -> bool:
        """See `RewardFunction.in_return`."""
        return self._config.form != "progress"

    def score(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        """Dense reward of each turn; 0 where a turn has no outcome. UserError for scores that are none."""
        scores = _checked(self.scorer.scores(rollout))
        scale = self._scale.of(scores, rollout.valid) if self._config.normalize else 1.0
        weight = self._weight(scale)
        if self._config.form == "additive":
            horizon = self._horizons_of(rollout)
            played = np.rint(rollout.time_fraction * horizon).astype(np.int64)
            dense = additive_rewards(
                scores,
                rollout.terminated,
                played,
                self._gamma,
                horizon,
                endless=self._endless,
            )
            dense = weight * dense if weight else np.zeros_like(scores)
        else:
            dense = self._from_potentials(scores, weight, rollout)
        dense = (dense * rollout.valid).astype(np.float32)
        self._last = self._measure(rollout, scores, dense)
        return dense

    def _horizons_of(self, rollout: Rollout) -> int | Int64[np.ndarray, "M N"]:
        """The most turns of each turn's episode."""
        if isinstance(self._horizon, int):
            return self._horizon
        by_task = np.array([self._horizon[task] for task in rollout.tasks], np.int64)
        return by_task[rollout.task_ids]

    def _weight(self, scale: float) -> float:
        """What the best score is worth; in the additive form no episode's rewards pass `limit`."""
        weight = self._config.weight * scale
        if self._config.form != "additive":
            return weight
        horizons = self._horizon
        shortest = (
            horizons if isinstance(horizons, int) else min(horizons.values())
        )  # pays the most
        most = largest_additive_return(self._gamma, shortest, endless=self._endless)
        return min(weight, self._config.limit / most)

    def _from_potentials(
        self, scores: Float32[np.ndarray, "M N"], weight: float, rollout: Rollout
    ) -> Float32[np.ndarray, "M N"]:
        potentials = weight * scores
        following = weight * _checked(self.scorer.following(rollout))
        if self._potential is not None:
            known = ~np.isnan(self._potential)
            potentials[0, known] = self._potential[known]
        self._potential = np.where(rollout.ended[-1], np.nan, following).astype(np.float32)
        if self._config.form == "potential":
            return potential_shaping(potentials, following, rollout.ended, self._gamma)
        stopped = rollout.truncated | ~rollout.valid
        return progress_rewards(potentials, following, rollout.terminated, stopped, weight)

    def metrics(self) -> dict[str, float]:
        """Of the last window: the mean score in episodes that succeeded and in others, and the monitor's trends."""
        return dict(self._last)

    def _measure(
        self,
        rollout: Rollout,
        scores: Float32[np.ndarray, "M N"],
        dense: Float32[np.ndarray, "M N"],
    ) -> dict[str, float]:
        good, other = rollout.succeeded & rollout.valid, ~rollout.succeeded & rollout.valid
        found = {
            f"reward/score_{name}": float(scores[turns].mean())
            for name, turns in (("success", good), ("other", other))
            if turns.any()
        }
        ended = int((rollout.terminated | rollout.truncated).sum())
        if ended:
            return found | self._monitor.observe(
                float(dense.sum()) / ended, float(rollout.rewards.sum()) / ended
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        """What the next window depends on."""
        edge = self._potential
        return self.scorer.state_dict() | {
            "potential": None
            if edge is None
            else [None if math.isnan(value) else float(value) for value in edge],
            "score_scale": self._scale.state(),
            "monitor": self._monitor.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Also reads states of earlier versions, which knew no potential at the window's edge."""
        self.scorer.load_state_dict(state)
        edge = state.get("potential")
        self._potential = None if edge is None else np.array(edge, np.float32)
        if "score_scale" in state:
            self._scale.restore(state["score_scale"])
        self._monitor.restore(state["monitor"] if "monitor" in state else state["watch"])


def shaped(scorer: Scorer, config: TrainConfig) -> ShapedReward:
    """The reward that `config` makes of a scorer."""
    return ShapedReward(
        scorer,
        config.reward,
        gamma=config.discount,
        horizon=_horizons(config.env),
        time_limit_is_terminal=config.horizon_ends_returns,
    )


def _horizons(env: EnvConfig) -> int | dict[str, int]:
    """Turns of an episode, by task where a union's suites differ."""
    turns = {settings.horizon for settings in suites_of(env).values()}
    if len(turns) == 1:
        return turns.pop()
    return {task: settings_of(env, task).horizon for task in task_names(env.suite)}


def _checked(scores: np.ndarray) -> np.ndarray:
    """UserError unless all scores lie in 0..1."""
    wrong = ~((scores >= 0) & (scores <= 1))  # NaN compares false
    if wrong.any():
        raise UserError(
            f"expected scores between 0 and 1 from the dense reward, got {float(scores[wrong][0]):g} among "
            f"{int(wrong.sum())} of {wrong.size}: the weights of the reward model are damaged. Train it again, or "
            "train without it"
        )
    return scores


# --------------------------------------------------------------------------------------------------
# The forms


def additive_rewards(
    scores: Float32[np.ndarray, "M N"],
    succeeded: Bool[np.ndarray, "M N"],
    played: Int64[np.ndarray, "M N"],
    gamma: float,
    horizon: int | Int64[np.ndarray, "M N"],
    *,
    endless: bool,
) -> Float32[np.ndarray, "M N"]:
    """Each turn is paid score / horizon; the turn of a success the best score for all turns that were left.

    Args:
        scores: 0..1, of each turn.
        succeeded: The turn ended its episode with success.
        played: Turns of the episode before this one.
        gamma: Discount a turn; the pay for the turns that were left is discounted as if they had been played.
        horizon: An episode's most turns, of each turn's episode where they differ.
        endless: Time limits bootstrap: to the returns an episode has no end, and the turns that were left are all
            turns to come.
    """
    left = np.maximum(horizon - played, 1).astype(np.float64)
    if endless:
        left = np.full_like(left, np.inf)
    best = annuity(gamma, left)
    return (np.where(succeeded, best, scores) / horizon).astype(np.float32)


def annuity(gamma: float, turns: np.ndarray) -> np.ndarray:
    """1 + gamma + ... + gamma^(turns - 1); turns may be infinite."""
    if gamma == 1:
        return turns
    return (1 - gamma**turns) / (1 - gamma)


def largest_additive_return(gamma: float, horizon: int, *, endless: bool) -> float:
    """The most that `additive_rewards` of one episode can add up to, undiscounted; infinite if endless at gamma 1.

    Played to the horizon with the best score it is 1. An endless episode may succeed in its last turn, and is then paid
    for all time to come.
    """
    if not endless:
        return 1.0
    return (horizon - 1) / horizon + float(annuity(gamma, np.array(np.inf))) / horizon


def potential_shaping(
    potentials: Float32[np.ndarray, "M N"],
    following: Float32[np.ndarray, " N"],
    ended: Bool[np.ndarray, "M N"],
    gamma: float,
) -> Float32[np.ndarray, "M N"]:
    """F_t = gamma Phi(o_{t+1}) - Phi(o_t), with Phi = 0 after an episode's end.

    Discounted over an episode that starts at t = 0 this adds up to -Phi(o_0), whatever was done in it (Ng, Harada,
    Russell 1999, theorem 1).

    Args:
        potentials: Phi of what was seen before each turn.
        following: Phi of what follows the window.
        ended: The turn ended its episode.
        gamma: Discount a turn.
    """
    after = np.concatenate([potentials[1:], following[None]])
    return (gamma * np.where(ended, 0.0, after) - potentials).astype(np.float32)


def progress_rewards(
    potentials: Float32[np.ndarray, "M N"],
    following: Float32[np.ndarray, " N"],
    succeeded: Bool[np.ndarray, "M N"],
    stopped: Bool[np.ndarray, "M N"],
    best: float = 1.0,
) -> Float32[np.ndarray, "M N"]:
    """Phi(o_{t+1}) - Phi(o_t), with Phi = `best` after a success; 0 on a turn that a time limit or a fault ended.

    Summed with a trace of lambda and no baseline this is the mean of what the reward model thinks of the next turns
    less what it thinks now: what a choice among continuations goes by. A critic that learned it would take it out
    again, as it does with a potential (Wiewiora 2003, JAIR 19).

    Args:
        potentials: Phi of what was seen before each turn, 0..best.
        following: Phi of what follows the window.
        succeeded: The turn ended its episode with success.
        stopped: The turn ended its episode otherwise, or has no outcome.
        best: The largest potential.
    """
    after = np.concatenate([potentials[1:], following[None]])
    after = np.where(succeeded, best, np.where(stopped, potentials, after))
    return (after - potentials).astype(np.float32)


class RunningScale:
    """One over a running root mean square, so that the reward model's calibration does not set the reward's size."""

    def __init__(self, decay: float = 0.9) -> None:
        self._decay, self._square, self._weight = decay, 0.0, 0.0

    def of(self, values: Float32[np.ndarray, "M N"], valid: Bool[np.ndarray, "M N"]) -> float:
        """The factor for this window, which counts in it; the mean is not taken off, as it may be the signal."""
        if valid.any():
            square = float(np.mean(np.square(values[valid], dtype=np.float64)))
            self._square = self._decay * self._square + (1 - self._decay) * square
            self._weight = self._decay * self._weight + (1 - self._decay)
        root = math.sqrt(self._square / self._weight) if self._weight else 1.0
        return 1.0 / max(root, 1e-6)

    def state(self) -> list[float]:
        return [self._square, self._weight]

    def restore(self, state: list[float]) -> None:
        self._square, self._weight = state
