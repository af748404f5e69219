"""From how good each moment looks to a dense reward, made safe to add to success.

    additive     r_t = w p(o_t, a_t) / horizon                   every turn is paid for what is seen in it
    potential    r_t = gamma Phi(o_{t+1}) - Phi(o_t), Phi = w p  progress is paid, and its loss is taken back
    progress     r_t = Phi(o_{t+1}) - Phi(o_t), Phi = w at success, and the critic does not learn it

p in 0..1 is a reward model's probability of its positive answer, or the simulator's own reward. Whatever it says, an
episode's
dense rewards add up to less than success pays (`bound_dense_rewards`), and it decides neither success nor checkpoints
nor the curriculum. The potential form leaves the best policy as it is (Ng, Harada, Russell 1999): over an episode it
adds up to -Phi(o_0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float32

from vla_rl.config import ProcessRewardConfig
from vla_rl.rewards.hacking_monitor import RewardHackingMonitor
from vla_rl.rewards.reward import bound_dense_rewards
from vla_rl.types import Rollout


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
        self, scorer: Scorer, config: ProcessRewardConfig, *, gamma: float, horizon: int
    ) -> None:
        """`gamma` is the discount of the returns, `horizon` an episode's most turns."""
        self.scorer = scorer
        self._config, self._gamma, self._horizon = config, gamma, horizon
        self._running: Float32[np.ndarray, " N"] | None = None
        self._scale = RunningScale()
        self._watch = RewardHackingMonitor()
        self._last: dict[str, float] = {}

    @property
    def in_return(self) -> bool:
        """See `RewardFunction.in_return`."""
        return self._config.form != "progress"

    def score(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        """Dense reward of each turn; 0 where a turn has no outcome."""
        config = self._config
        scores = self.scorer.scores(rollout)
        dense = self._shaped(scores, rollout)
        if config.normalize:
            dense = self._scale.normalised(dense, rollout.valid) / self._horizon
        dense = (config.weight * dense * rollout.valid).astype(np.float32)
        running = np.zeros(dense.shape[1], np.float32) if self._running is None else self._running
        bounded, self._running = bound_dense_rewards(dense, rollout.ended, running, config.limit)
        self._last = self._measure(rollout, scores, dense, bounded)
        return bounded

    def _shaped(
        self, scores: Float32[np.ndarray, "M N"], rollout: Rollout
    ) -> Float32[np.ndarray, "M N"]:
        if self._config.form == "additive":
            return scores / self._horizon
        following = self.scorer.following(rollout)
        if self._config.form == "potential":
            return potential_shaping(scores, following, rollout.ended, self._gamma)
        stopped = rollout.truncated | ~rollout.valid
        return progress_rewards(scores, following, rollout.terminated, stopped)

    def metrics(self) -> dict[str, float]:
        """Of the last window: the mean score in episodes that succeeded and in others, and the watch."""
        return dict(self._last)

    def _measure(
        self,
        rollout: Rollout,
        scores: Float32[np.ndarray, "M N"],
        dense: Float32[np.ndarray, "M N"],
        bounded: Float32[np.ndarray, "M N"],
    ) -> dict[str, float]:
        good, other = rollout.succeeded & rollout.valid, ~rollout.succeeded & rollout.valid
        found = {"reward/clipped_share": float(np.mean(~np.isclose(dense, bounded, atol=1e-6)))}
        for name, turns in (("success", good), ("other", other)):
            if turns.any():
                found[f"reward/judged_{name}"] = float(scores[turns].mean())
        ended = int((rollout.terminated | rollout.truncated).sum())
        if ended:
            return found | self._watch.observe(
                float(bounded.sum()) / ended, float(rollout.rewards.sum()) / ended
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        """What the next window depends on."""
        return self.scorer.state_dict() | {
            "running": None if self._running is None else self._running.tolist(),
            "scale": self._scale.state(),
            "watch": self._watch.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scorer.load_state_dict(state)
        running = state["running"]
        self._running = None if running is None else np.array(running, np.float32)
        self._scale.restore(state["scale"])
        self._watch.restore(state["watch"])


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
) -> Float32[np.ndarray, "M N"]:
    """Phi(o_{t+1}) - Phi(o_t), with Phi = 1 after a success; 0 on a turn that a time limit or a fault ended.

    Summed with a trace of lambda and no baseline this is the mean of what the reward model thinks of the next turns
    less what
    it thinks now: what a choice among continuations goes by. A critic that learned it would take it out again, as it
    does with a potential (Wiewiora 2003, JAIR 19).

    Args:
        potentials: Phi of what was seen before each turn, 0..1.
        following: Phi of what follows the window.
        succeeded: The turn ended its episode with success.
        stopped: The turn ended its episode otherwise, or has no outcome.
    """
    after = np.concatenate([potentials[1:], following[None]])
    after = np.where(succeeded, 1.0, np.where(stopped, potentials, after))
    return (after - potentials).astype(np.float32)


class RunningScale:
    """Division by a running root mean square, so that the reward model's calibration does not set the reward's size."""

    def __init__(self, decay: float = 0.9) -> None:
        self._decay, self._square, self._weight = decay, 0.0, 0.0

    def normalised(
        self, values: Float32[np.ndarray, "M N"], valid: Bool[np.ndarray, "M N"]
    ) -> Float32[np.ndarray, "M N"]:
        """`values` over the root of their running mean square; the mean is not taken off, as it may be the signal."""
        if valid.any():
            square = float(np.mean(np.square(values[valid], dtype=np.float64)))
            self._square = self._decay * self._square + (1 - self._decay) * square
            self._weight = self._decay * self._weight + (1 - self._decay)
        scale = np.sqrt(self._square / self._weight) if self._weight else 1.0
        return (values / max(scale, 1e-6)).astype(np.float32)

    def state(self) -> list[float]:
        return [self._square, self._weight]

    def restore(self, state: list[float]) -> None:
        self._square, self._weight = state
