"""Options of the commands that meet policies over WebSocket."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vla_rl.config import EvalConfig
from vla_rl.config.bounds import Config, Seed, TemperatureOrGreedy, Workers
from vla_rl.config.limits import LimitsConfig
from vla_rl.config.remote import RemoteConfig


@dataclass(frozen=True)
class CheckEnvArguments(Config):
    """Check a simulator."""

    suite: str
    """A suite, for example gym:my_module:MyEnv-v0,instruction=push the block."""
    episodes: Annotated[int, Ge(1), Le(1000)] = 3
    """Episodes of random play, in which success may be seen."""


@dataclass(frozen=True)
class RemoteEvalArguments(Config):
    """Evaluate a policy that another program serves with openpi's protocol."""

    policy: str
    """Its address, ws://HOST:PORT or wss://HOST:PORT."""
    protocol: EvalConfig = field(default_factory=EvalConfig)
    """What is evaluated."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    """How it is asked."""
    json: Path | None = None
    """File for the whole result."""
    videos_out: Path | None = None
    """Folder for the videos; by default `videos` beside the JSON file."""
    workers: Workers = 0
    """Simulator processes; 0 takes one per CPU core. The result does not depend on it."""


@dataclass(frozen=True)
class ServeArguments(Config):
    """Serve a policy over WebSocket, until it is stopped."""

    checkpoint: Path
    """A run folder, one of its checkpoints, a policy folder, or a hub id (owner/name)."""
    protocol: Literal["openpi", "vla-eval"] = "openpi"
    """openpi: for its clients, and for `vla-rl eval --policy`. vla-eval: for vla-evaluation-harness."""
    suite: str = ""
    """What it is to play; empty takes what it was trained on."""
    robot: bool = False
    """It drives a robot that no suite here has: its actions leave in the unit of the dataset that it was fine-tuned on,
    one row each, and proprioception may have any length."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """What every action keeps that leaves."""
    answer_timeout: Annotated[float, Ge(0), Le(1_000_000)] = 0.0
    """Seconds from a request to its answer; what takes longer is refused, not sent. 0 has no limit."""
    idle_timeout: Annotated[float, Ge(0), Le(1_000_000)] = 0.0
    """Seconds after which a client is hung up on that asks nothing, or does not read. 0 waits for ever."""
    require_sequence: bool = False
    """Requests without a sequence number are refused. Those with one must always have a greater one than the last."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own needs a key."""
    port: Annotated[int, Ge(0), Le(65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    key_file: Path | None = None
    """File with the key that clients must have; without it the one in VLA_RL_POLICY_KEY, if there is one."""
    temperature: TemperatureOrGreedy = 0.0
    """0 is greedy; above 0 samples, with randomness fixed by the seed, the client's number and its turn."""
    seed: Seed = 0
    """Of sampled play."""
    unnorm_key: str = ""
    """Dataset whose action statistics un-normalise actions; empty takes the checkpoint's own, or the suite's."""
    kind: str = ""
    """Class of the policy, openvla or openvla-oft, where the checkpoint does not say it itself."""
    base: str = ""
    """Folder or hub id of the model that adapters belong to, where it is not the one they name themselves."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights."""
