"""How many processes train one policy together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

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
    shard: Literal["none", "fsdp2"] = "none"
    """fsdp2: each of several ranks keeps a part of the policy's weights, gradients and optimizer alone, and a layer is
    put together when it computes. For training all weights, and for models that do not fit one GPU. With
    policy.dtype bfloat16 trained weights stay float32 and compute in bfloat16; auto is bfloat16 on a GPU."""
    gather: Literal["window", "call"] = "window"
    """fsdp2 only, how the policy plays. window: all weights are put together for a window of play or an evaluation,
    where they fit. call: layer by layer in every call, which takes little memory and much time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.ranks <= self.shards,
            f"parallel.ranks may be at most parallel.shards = {self.shards}, got {self.ranks}: a process takes whole "
            f"shards. Set parallel.shards {self.ranks}, which plays other episodes, or parallel.ranks {self.shards}",
        )
        require(
            self.shard == "none" or self.engine == "own",
            f"parallel.engine {self.engine} plays with a whole copy of the weights, and parallel.shard fsdp2 leaves "
            "every process a part of them: set parallel.engine own, or parallel.shard none",
        )
