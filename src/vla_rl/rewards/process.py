"""The process reward in the loop: what a learned judge thinks of each turn, made safe to add to success.

    additive     r_t = w p(o_t, a_t) / horizon                   every turn is paid for what the judge sees in it
    potential    r_t = gamma Phi(o_{t+1}) - Phi(o_t), Phi = w p  progress is paid, and its loss is taken back
    progress     r_t = Phi(o_{t+1}) - Phi(o_t), Phi = w at success, and the critic does not learn it

p is the judge's probability of its positive answer. Whatever the judge says, an episode's dense rewards add up to less
than success pays (`bound_dense_rewards`), and the judge decides neither success nor checkpoints nor the curriculum.
The potential form leaves the best policy as it is (Ng, Harada, Russell 1999): over an episode it adds up to -Phi(o_0).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from vla_rl.config import ProcessRewardConfig
from vla_rl.rewards.judge import Judge, load_judge, probability
from vla_rl.rewards.success import bound_dense_rewards
from vla_rl.types import Rollout

_LOG = logging.getLogger(__name__)

DecodeActions = Callable[[Int64[np.ndarray, "B K"]], Float32[np.ndarray, "B C A"]]


class ProcessReward:
    """A judge as a `RewardModel`: one batched call for each window."""

    def __init__(
        self,
        judge: Judge,
        config: ProcessRewardConfig,
        *,
        gamma: float,
        horizon: int,
        decode_actions: DecodeActions,
    ) -> None:
        """`gamma` is the discount of the returns, `horizon` an episode's most turns; `decode_actions` turns tokens
        into the actions that an action-conditioned judge looks at.
        """
        self.judge = judge
        self.folder = config.judge
        """Where the judge in use came from: a refreshed one replaces the configured one."""
        self._config, self._gamma, self._horizon = config, gamma, horizon
        self._decode_actions = decode_actions
        self._running: Float32[np.ndarray, " N"] | None = None
        self._scale = RunningScale()
        self._watch = HackingWatch()
        self._last: dict[str, float] = {}

    @property
    def in_return(self) -> bool:
        """See `RewardModel.in_return`."""
        return self._config.form != "progress"

    def use(self, judge: Judge, folder: str) -> None:
        """Ask this judge from now on."""
        self.judge, self.folder = judge, folder

    def score(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        """Dense reward of each turn; 0 where a turn has no outcome."""
        config = self._config
        scores = self._probabilities(rollout)
        ended = rollout.terminated | rollout.truncated | ~rollout.valid
        if config.form == "potential":
            following = self._following(rollout)
            dense = potential_shaping(scores, following, ended, self._gamma)
        elif config.form == "progress":
            following = self._following(rollout)
            dense = progress_rewards(
                scores, following, rollout.terminated, rollout.truncated | ~rollout.valid
            )
        else:
            dense = scores / self._horizon
        if config.normalize:
            dense = self._scale.normalised(dense, rollout.valid) / self._horizon
        dense = (config.weight * dense * rollout.valid).astype(np.float32)
        running = np.zeros(dense.shape[1], np.float32) if self._running is None else self._running
        bounded, self._running = bound_dense_rewards(dense, ended, running, config.limit)
        self._last = self._measure(rollout, scores, dense, bounded)
        return bounded

    def metrics(self) -> dict[str, float]:
        """Of the last window: the judge's mean probability in episodes that succeeded and in others, and the watch."""
        return dict(self._last)

    def _probabilities(self, rollout: Rollout) -> Float32[np.ndarray, "M N"]:
        flat = rollout.flat_observation()
        tokens = rollout.tokens.reshape(len(flat), -1)
        actions = self._decode_actions(tokens) if self.judge.sees_actions else None
        odds = self.judge.log_odds(flat.images, flat.instructions, actions)
        return probability(odds).reshape(rollout.rewards.shape)

    def _following(self, rollout: Rollout) -> Float32[np.ndarray, " N"]:
        """What the judge thinks of the observations that follow the window."""
        tasks = rollout.task_ids[-1].tolist()
        words = tuple(rollout.instructions[i] for i in tasks)
        images: UInt8[np.ndarray, "N H W 3"] = rollout.next_images
        return probability(self.judge.log_odds(images, words, None))

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
        """What the next window depends on; the judge itself lies in its folder."""
        return {
            "judge": self.folder,
            "running": None if self._running is None else self._running.tolist(),
            "scale": self._scale.state(),
            "watch": self._watch.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["judge"] != self.folder:
            self.use(load_judge(state["judge"]), state["judge"])
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

    Summed with a trace of lambda and no baseline this is the mean of what the judge thinks of the next turns less what
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
    """Division by a running standard deviation, so that the judge's calibration does not set the reward's size."""

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


class HackingWatch:
    """Warns when the dense return rises while success falls: the policy then pleases the judge, not the task."""

    def __init__(self, windows: int = 20) -> None:
        self._windows = windows
        self._dense: deque[float] = deque(maxlen=windows)
        self._success: deque[float] = deque(maxlen=windows)
        self._warned = False

    def observe(self, dense_return: float, success: float) -> dict[str, float]:
        """One window's returns per ended episode. Gives the trends over the last windows, once there are enough."""
        self._dense.append(dense_return)
        self._success.append(success)
        if len(self._dense) < self._windows:
            return {}
        dense, success_trend = trend(list(self._dense)), trend(list(self._success))
        hacked = dense > SIGNIFICANT and success_trend < -SIGNIFICANT
        if hacked and not self._warned:
            _LOG.warning(
                "over the last %d iterations the judge's reward rose while the simulator's success fell: the policy "
                "may be learning to please the judge. Lower reward.weight, or refresh the judge (reward.refresh_every)",
                self._windows,
            )
        self._warned = hacked
        return {
            "reward/trend_dense": dense,
            "reward/trend_success": success_trend,
            "reward/hacking": float(hacked),
        }

    def state(self) -> dict[str, Any]:
        return {"dense": list(self._dense), "success": list(self._success), "warned": self._warned}

    def restore(self, state: dict[str, Any]) -> None:
        self._dense = deque(state["dense"], maxlen=self._windows)
        self._success = deque(state["success"], maxlen=self._windows)
        self._warned = bool(state["warned"])


SIGNIFICANT = 2.0
"""A trend counts from this t value on."""


def trend(values: list[float]) -> float:
    """The t value of a straight line's slope through `values`: the slope over its standard error.

    0 for constant values; beyond plus or minus 2 a trend is unlikely to be chance, were the values independent.
    """
    y = np.asarray(values, dtype=np.float64)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(x @ y / (x @ x))
    left = y - y.mean() - slope * x
    error = np.sqrt(float(left @ left) / (len(y) - 2) / float(x @ x))
    if error < 1e-12:
        return 0.0 if abs(slope) < 1e-12 else float(np.copysign(1e3, slope))
    return slope / float(error)
