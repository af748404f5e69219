"""How many processes train one policy together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from vla_rl.config.bounds import Config
from vla_rl.config.errors import require


@dataclass(frozen=True)
class ParallelConfig(Config, group="parallel"):
    """How many processes train one policy together."""

    ranks: Annotated[int, Ge(1), Le(4096)] = 1
    """Processes on this machine that train together, each with simulators, inference and a share of every minibatch of
    its own. The numbers are those of one process, up to rounding."""
    shards: Annotated[int, Ge(1), Le(4096)] = 4
    """Parts into which environments and minibatches are cut, however many processes there are; a process takes whole
    ones, so there can be at most as many. Another number plays other episodes."""
    engine: str = "own"
    """Who decides while a window is played: own, the policy that learns; vllm, an engine of vLLM in a process of its
    own, which is given the new weights after every window."""
    engine_python: str = ""
    """Python of vLLM's environment, or the environment's folder; empty takes VLA_RL_ENGINE_PYTHON, or .venv-vllm."""
    engine_memory: Annotated[float, Gt(0), Le(1)] = 0.4
    """Share of a GPU's memory that the engine takes; what is left is the learner's."""
    engine_address: str = ""
    """An engine that runs already (`vla-rl engine serve`), unix:PATH or 127.0.0.1:PORT; empty starts one."""
    timeout: Annotated[float, Gt(0), Le(1_000_000)] = 1800.0
    """Seconds that a process waits for the others before it gives the run up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.ranks <= self.shards,
            f"parallel.ranks may be at most parallel.shards = {self.shards}, got {self.ranks}: a process takes whole "
            f"shards. Set parallel.shards {self.ranks}, which plays other episodes, or parallel.ranks {self.shards}",
        )
