"""Who plays demonstrations in a Gymnasium environment: a function of its author's, or chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from vla_rl.config.errors import ConfigError, UserError
from vla_rl.envs.benchmark import Expert
from vla_rl.envs.faults import told
from vla_rl.envs.gymnasium.env import GymEnv
from vla_rl.envs.gymnasium.opening import imported
from vla_rl.envs.gymnasium.options import GymOptions
from vla_rl.envs.gymnasium.simulator import Layout

RANDOM = "random"


class RandomPlay:
    """Uniformly random actions, the same for the same episode. The episodes that succeed by chance are kept."""

    done = False

    def __init__(self, env: GymEnv, seed: int) -> None:
        self._size, self._rng = env.action_dim, np.random.default_rng([seed, 1])

    def action(self) -> Float32[np.ndarray, " A"]:
        return self._rng.uniform(-1, 1, self._size).astype(np.float32)


class ScriptedPlay:
    """A function that is given the unwrapped environment before each action and returns the next, in its own units."""

    def __init__(
        self, env: GymEnv, options: GymOptions, layout: Layout, function: Callable[[Any], Any]
    ) -> None:
        self.done = False
        self._env, self._options, self._function = env, options, function
        low, high = np.array(layout.actions.low), np.array(layout.actions.high)
        self._low, self._span = low, high - low

    def action(self) -> Float32[np.ndarray, " A"]:
        """The action in [-1, 1]; None from the function gives up. UserError for what is no action."""
        with told(self._options.suite, "its expert"):
            answer = self._function(self._env.simulator.env.unwrapped)
        if answer is None:
            self.done = True
            return np.zeros(len(self._low), np.float32)
        values = np.asarray(answer)
        if (
            values.size != len(self._low)
            or values.dtype.kind not in "fiub"
            or not np.isfinite(values).all()
        ):
            raise UserError(
                f"{self._options.suite}: its expert gave {answer!r}: expected {len(self._low)} finite numbers, an "
                "action of the environment, or None to give up"
            )
        share = (values.reshape(-1).astype(np.float64) - self._low) / self._span
        return np.clip(2 * share - 1, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class GymExpert:
    """Makes the expert of an episode that has begun. A value: simulator processes receive it."""

    options: GymOptions
    layout: Layout

    def __call__(self, env: GymEnv) -> Expert:
        asked = self.options.expert
        if asked == RANDOM:
            return RandomPlay(env, env.seed)
        if not asked:
            raise UserError(
                f"{self.options.suite} has no expert, so nobody plays demonstrations: say expert=<module>:<function> "
                "(given the environment, it returns the next action), expert=random (successes by chance are kept), or "
                "practise without demonstrations (`vla-rl train toy --env.suite ...` starts from random weights)"
            )
        return ScriptedPlay(env, self.options, self.layout, self._function(asked))

    def _function(self, asked: str | Callable[[Any], Any]) -> Callable[[Any], Any]:
        if callable(asked):
            return asked
        module, colon, name = asked.partition(":")
        if not (colon and module and name):
            raise ConfigError(
                f"{self.options.suite}: expert={asked}: expected <module>:<function>, or random"
            )
        found = getattr(imported(self.options, module), name, None)
        if not callable(found):
            raise ConfigError(
                f"{self.options.suite}: expert={asked}: the module has no function {name!r}"
            )
        return found
