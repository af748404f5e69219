"""Who decides while a window is played: the learner's own policy, or an engine with a copy of its weights.

Player    decides actions; every `Policy` is one
Engine    a player whose weights are given to it between two windows
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from vla_rl.config import ConfigError, TrainConfig, nearest
from vla_rl.distributed.world import World
from vla_rl.policies.policy import ForPolicy, Policy, PolicyOutput, has_critic
from vla_rl.types import Observation


class Player(Protocol):
    """What the collector asks of whoever decides: a part of `Policy`, with the same meaning."""

    @property
    def action_dim(self) -> int: ...

    @property
    def action_chunk(self) -> int: ...

    def act(
        self,
        observation: Observation,
        temperature: float = 1.0,
        uniforms: Float32[np.ndarray, "N K"] | None = None,
    ) -> PolicyOutput: ...

    def decode_actions(self, tokens: Int64[Tensor, "N K"]) -> Float32[np.ndarray, "N C A"]: ...


@runtime_checkable
class Valuing(Protocol):
    """A player that also knows values."""

    def values(self, observation: Observation) -> Float[Tensor, " N"]: ...


class Engine(Player, AbstractContextManager["Engine"], Protocol):
    """A player with weights of its own. Leaving its context ends its processes."""

    def renew(self, policy: Policy, version: int) -> None:
        """Play with the weights of `policy` from now on. All ranks call it, between two windows.

        version: How many windows have been learned from; `PolicyOutput.version` of what is played from now on.
        """
        ...


class OwnPolicy(ForPolicy):
    """The learner's own policy in the learner's process: what it has learned it plays at once."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        if has_critic(policy):
            self.values = policy.values

    def act(
        self,
        observation: Observation,
        temperature: float = 1.0,
        uniforms: Float32[np.ndarray, "N K"] | None = None,
    ) -> PolicyOutput:
        return self._policy.act(observation, temperature, uniforms)

    def renew(self, policy: Policy, version: int) -> None:
        pass

    def __enter__(self) -> OwnPolicy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


BuildEngine = Callable[[Policy, TrainConfig, World], Engine]


def _vllm(policy: Policy, config: TrainConfig, world: World) -> Engine:
    from vla_rl.serving.engine import ServedEngine

    return ServedEngine(policy, config, world)


ENGINES: dict[str, BuildEngine] = {
    "own": lambda policy, config, world: OwnPolicy(policy),
    "vllm": _vllm,
}
"""Name (`parallel.engine`) -> what builds it."""


def build_engine(policy: Policy, config: TrainConfig, world: World) -> Engine:
    """The engine that the configuration names. Raises ConfigError where there is none of that name."""
    name = config.parallel.engine
    if name not in ENGINES:
        raise ConfigError(f"there is no engine {name!r}.{nearest(name, ENGINES)}")
    return ENGINES[name](policy, config, world)
