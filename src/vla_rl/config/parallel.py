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
    arrangement: Literal["ranks", "pools"] = "ranks"
    """ranks: every process simulates, plays and learns. pools: learners, actors and simulator hosts are processes of
    their own, on one machine or on several, through Ray (extra vla-rl[ray])."""
    learners: Annotated[int, Ge(1), Le(4096)] = 1
    """pools: processes that learn together, what `ranks` is to the other arrangement. The first is the one that was
    started; the others lie as near to it as there is room."""
    actors: Annotated[int, Ge(0), Le(4096)] = 0
    """pools: processes that hold a copy of the policy and play for the learners, each for as many as the others or one
    more. 0: learners play with their own."""
    hosts: Annotated[int, Ge(0), Le(65_536)] = 0
    """pools: processes that hold the simulators, all learners' together, spread over the machines. 0: they stay with
    the learners."""
    ray: str = "auto"
    """pools: address of the Ray cluster to join. auto: the one that RAY_ADDRESS names, else one is started on this
    machine for the time of the run."""
    staleness: Annotated[int, Ge(0), Le(1)] = 0
    """pools: 1 plays the next window while this one is learned, with the weights from before. Ratios are then clipped
    against the weights before the update and weighted with how far those are from the ones that played
    (`ppo.importance_cap`). 0: one after the other, with the numbers of `ranks`."""
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
        if self.arrangement == "pools":
            self._check_pools()
            return
        _require_shards("ranks", self.ranks, self.shards)
        require(
            self.staleness == 0,
            "parallel.staleness 1 needs parallel.arrangement pools and parallel.actors 1 or more: the policy that "
            "plays must be another copy than the one that learns",
        )
        require(
            self.shard == "none" or self.engine == "own",
            f"parallel.engine {self.engine} plays with a whole copy of the weights, and parallel.shard fsdp2 leaves "
            "every process a part of them: set parallel.engine own, or parallel.shard none",
        )

    def _check_pools(self) -> None:
        _require_shards("learners", self.learners, self.shards)
        require(
            self.actors <= self.learners,
            f"parallel.actors may be at most parallel.learners = {self.learners}, got {self.actors}: a learner is "
            "served by one actor, and the others would stand idle",
        )
        require(
            self.actors == 0 or self.engine == "own",
            f"parallel.actors {self.actors} and parallel.engine {self.engine} contradict each other: actors hold the "
            "policy that learns. Take parallel.engine own, or parallel.actors 0",
        )
        require(
            self.actors == 0 or self.shard == "none",
            "parallel.actors play with a whole copy of the weights, and parallel.shard fsdp2 leaves every learner a "
            "part of them: set parallel.actors 0, or parallel.shard none",
        )
        require(
            self.hosts == 0 or self.hosts >= self.learners,
            f"parallel.hosts must be 0 (simulators stay with the learners) or at least parallel.learners = "
            f"{self.learners}, got {self.hosts}: every learner needs one",
        )
        require(
            self.staleness == 0 or self.actors > 0,
            "parallel.staleness 1 needs parallel.actors 1 or more: a policy cannot play and learn at once in "
            "one process",
        )

    @property
    def size(self) -> int:
        """Processes that learn together."""
        return self.learners if self.arrangement == "pools" else self.ranks


def _require_shards(name: str, count: int, shards: int) -> None:
    require(
        count <= shards,
        f"parallel.{name} may be at most parallel.shards = {shards}, got {count}: a process takes whole "
        f"shards. Set parallel.shards {count}, which plays other episodes, or parallel.{name} {shards}",
    )
