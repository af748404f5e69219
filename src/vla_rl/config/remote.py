"""How a policy is asked that another program serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le

from vla_rl.config.bounds import Config


@dataclass(frozen=True)
class RemoteConfig(Config, group="remote"):
    """A policy behind a WebSocket that speaks openpi's protocol."""

    replan: Annotated[int, Ge(0), Le(1024)] = 0
    """Actions of each answer that are played before the policy is asked again: one turn. 0 takes the whole answer of a
    policy of ours, and 5 of any other, as openpi's clients do."""
    action_repeat: Annotated[int, Ge(1), Le(10_000)] = 1
    """Simulator steps for which each of its actions is held."""
    horizon: Annotated[int, Ge(0), Le(1_000_000)] = 0
    """Turns after which an episode is cut; 0 takes as many simulator steps as the benchmark's protocol."""
    image_size: Annotated[int, Ge(0), Le(1024)] = 0
    """Height and width of the pictures that are sent; 0 takes what the server's metadata ask for (image_size), else
    224."""
    camera: str = ""
    """The simulator's camera; empty takes the benchmark's own."""
    wrist_camera: str = "auto"
    """Camera of the second picture: a name, `wrist`, or none. auto: `wrist` on LIBERO for policies of others."""
    light: bool = False
    """Meta-World, for policies of others: draw as fast as for small policies of ours, with few faces and no shadows. By
    default the pictures are the simulator's own, which they were trained on."""
    key_file: Path | None = None
    """File with the key that the server asks for; without it the one in VLA_RL_POLICY_KEY, if there is one."""
    timeout: Annotated[float, Gt(0), Le(1_000_000)] = 120.0
    """Seconds in which the server must answer; its first answer may have to wait for a compiler."""
