"""What the rest of the system needs of a simulator: one `Benchmark` value each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import UserError
from vla_rl.envs.env import Env


def no_dense_reward(suite: str) -> UserError:
    """The error of whoever asks a simulator without a shaped reward for it."""
    return UserError(
        f"the simulator of {suite} has no dense reward of its own: expected a suite of Meta-World. Take a process "
        "reward model in its place"
    )


class Expert(Protocol):
    """Plays the episode that its environment has just started."""

    done: bool  # it has given up, or is finished; the environment says which

    def action(self) -> Float32[np.ndarray, " A"]: ...


@dataclass(frozen=True)
class Benchmark:
    """One simulator with its suites."""

    title: str
    robot: str  # `robot_type` of demonstrations made here; their actions span [-1, 1] by definition
    simulator_rate: int  # simulator steps of one second of robot time
    frame_every: int  # simulator steps between two frames of a video
    action_dim: int
    proprio_dim: int
    noise_scale: tuple[float, ...]  # of each action component, for noise on an expert's actions
    task_names: Callable[[str], tuple[str, ...]]  # of a suite
    make_envs: Callable[[EnvConfig, int], Sequence[Env]]
    make_video_env: Callable[[EnvConfig], Any]  # the same simulation, drawn for people
    make_expert: Callable[[Any], Expert]
