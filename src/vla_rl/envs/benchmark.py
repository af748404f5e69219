"""What the rest of the system needs of a simulator: one `Benchmark` value each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float32

from vla_rl.config.env import EnvConfig
from vla_rl.config.policy import Conventions
from vla_rl.envs.env import Env


class Expert(Protocol):
    """Plays the episode that its environment has just started."""

    done: bool  # it has given up, or is finished; the environment says which

    def action(self) -> Float32[np.ndarray, " A"]: ...


@dataclass(frozen=True)
class RobotLayout:
    """Where a robot's proprioception and actions hold its hand and its gripper.

    In an action the hand's displacement comes first and the gripper's command last: -1 opens, +1 closes.
    """

    position: tuple[int, ...]  # columns of proprioception: the hand's position (m)
    opening: tuple[tuple[int, float], ...]  # (column, weight): the gripper's opening is their sum
    stroke: float  # that sum of a gripper that is fully open
    speed: float  # m/s of the hand while a displacement is 1
    moves: int = 3  # the first so many numbers of an action displace the hand


@dataclass(frozen=True)
class EvalDefaults:
    """Which initial states the benchmark's protocol plays when nobody says otherwise."""

    split: Literal["held-out", "train", "all"] = "held-out"
    episodes_per_task: int | None = 30
    """The first so many of the split, or as many as it has if those are fewer; None plays the whole split."""


@dataclass(frozen=True)
class Installation:
    """What must be installed, and how to find out that it works."""

    module: str  # that `import` finds where the simulator is installed
    packages: tuple[str, ...]  # distributions whose versions can change a result
    extra: str  # of vla-rl, that installs them
    probe: str
    """Python that another interpreter runs: prints a phrase (what there is), or fails with the reason."""
    optional: bool = True
    """Whether a machine without it is in order."""
    mend: str = ""
    """What to do where the probe fails; empty: install the extra."""


@dataclass(frozen=True)
class Benchmark:
    """One simulator with its suites. An entry of `envs.registry.BENCHMARKS` is all that the rest needs to play it."""

    # -- what it is
    title: str
    suites: tuple[str, ...]  # the words before a suite's colon; the first is a suite by itself
    suites_in_words: str  # for error messages: "mt1:<task>, mt5, mt10, mt10-hard or mt50"
    task_names: Callable[[str], tuple[str, ...]]  # of a suite; ConfigError if there is no such
    instructions: Callable[[str], tuple[str, ...]]  # of a suite, one per task

    # -- how it is made
    make_envs: Callable[[EnvConfig, int], Sequence[Env]]
    """So many environments of this process. Importable by name: simulator processes receive the name."""
    make_video_env: Callable[[EnvConfig], Any]  # the same simulation, drawn for people
    make_expert: Callable[[Any], Expert]

    # -- its robot
    robot: str  # `robot_type` of demonstrations made here; their actions span [-1, 1] by definition
    action_dim: int
    proprio_dim: int
    noise_scale: tuple[float, ...]  # of each action component, for noise on an expert's actions
    robot_layout: RobotLayout

    # -- its clock
    simulator_rate: int  # simulator steps of one second of robot time
    frame_every: int  # simulator steps between two frames of a video

    # -- how it is played when nobody says otherwise
    env_defaults: Callable[[str], EnvConfig]  # the protocol of a suite
    laptop_defaults: Callable[[str], EnvConfig]  # where a small policy practises it on a laptop
    eval_defaults: EvalDefaults = EvalDefaults()
    horizon: Callable[[str], int | None] = lambda suite: None
    """Simulator steps that the protocol allows an episode of a suite; None: as many as in training."""

    # -- what else there may be
    wrist_camera: str = ""
    """Second camera that policies of others expect to be shown; empty where they expect none."""
    dense_reward_max: float | None = None
    """What the simulator's own shaped reward gives for a solved task, if it has one; it is never below 0."""
    stored_states: int | None = None  # initial states of a task, where there are only so many
    in_process: bool = False  # so cheap that simulator processes would cost more than they save
    ignores: tuple[str, ...] = ()  # fields of `EnvConfig` that mean nothing here
    robot_aliases: tuple[str, ...] = ()  # what datasets of others call the same robot
    task_of_instruction: Callable[[str], str] = str  # for datasets that hold instructions alone
    conventions: Callable[[str], Conventions] = lambda suite: Conventions()
    """What a suite's published checkpoints mean by images, gripper and actions, which they do not say."""
    installation: Installation | None = None  # None: comes with this package
    tasks_by_name: bool = True
    """Whether tasks of one name are the same task in whichever suite they are played."""

    def plays(self, suite: str) -> bool:
        """Whether a suite, or some tasks of one, is this benchmark's."""
        return suite.partition(":")[0] in self.suites

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions whose versions can change a result."""
        return self.installation.packages if self.installation is not None else ()
