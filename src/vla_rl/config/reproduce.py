"""A published figure, reproduced; and where it is not, the reason looked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vla_rl.config.bounds import Config, Count, Seed, TemperatureOrGreedy, Whole, Workers
from vla_rl.config.errors import require


@dataclass(frozen=True)
class PlayedAs(Config):
    """How the checkpoint is played where it is not played by the protocol, for trying a suspicion out."""

    images: Literal["protocol", "as-is", "openvla-libero", "openvla-libero-uncropped"] = "protocol"
    """What happens to a frame before the model sees it. protocol: what the checkpoint says, and the suite's where it
    says nothing."""
    turned: bool = False
    """Turn frames by 180 degrees, for checkpoints that were trained on frames as the simulator draws them."""
    gripper: Literal["protocol", "as-is", "openvla"] = "protocol"
    """Meaning of the gripper's dimension, see ModelConfig.gripper."""
    unnorm_key: str = ""
    """Dataset whose action statistics un-normalise actions; empty takes the protocol's, or the checkpoint's only
    one."""
    kind: Literal["protocol", "openvla", "openvla-oft"] = "protocol"
    """Class of the policy."""
    temperature: TemperatureOrGreedy | None = None
    """0 is greedy, which is the protocol."""
    horizon: Whole = 0
    """Turns after which an episode is cut; 0 takes the protocol's."""
    settle_steps: Whole | None = None
    """LIBERO only: control steps without motion after a reset; by default the protocol's."""


@dataclass(frozen=True)
class ReproduceConfig(Config):
    """Evaluate a published checkpoint by its protocol and compare with the published figure."""

    suite: str
    """libero-spatial, libero-object, libero-goal or libero-10; any other suite for a checkpoint with a card beside it,
    or with a figure given by `--published`."""
    checkpoint: str = ""
    """Folder or hub id; empty takes the checkpoint that OpenVLA's authors published for the suite."""
    published: Annotated[float, Ge(0), Le(100)] = 0.0
    """The figure to compare with, in per cent; 0 takes the card's beside the checkpoint, or the published one."""
    publish: bool = False
    """Write what is measured as the card beside the checkpoint (reproduce.json), to be reproduced by others."""
    episodes_per_task: Count | None = None
    """The first so many initial states of each task, for a quicker look; by default all of the protocol's."""
    demos: Path | None = None
    """Demonstrations that the checkpoint was fine-tuned on: a LeRobotDataset v3, or a folder of LIBERO's official HDF5
    files. Where the figure is not reached, their likelihood tells the cause in minutes."""
    trial_episodes: Count = 50
    """Episodes that are played again with one setting changed, where the figure is not reached."""
    practice_iterations: Whole = 1
    """Iterations of PPO to play and learn at the end, to predict the time of the whole recipe; 0 practises not at all,
    and 4 or more let the plan use the times of this machine."""
    preset: str = ""
    """Recipe to practise and to plan; empty takes the suite's for OpenVLA-7B, or the card's."""
    played: PlayedAs = field(default_factory=PlayedAs)
    """Settings other than the protocol's."""
    base: str = ""
    """Folder or hub id of the model that adapters belong to, where it is not the one they name themselves."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights."""
    out: str = ""
    """Folder of the report and of all that was played; empty takes runs/reproduce-SUITE. The same command goes on in
    it."""
    workers: Workers = 0
    """Simulator processes; 0 takes one per CPU core. The result does not depend on it."""
    seed: Seed = 0
    """Of sampled play and of practice."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.publish and self.published),
            "publish writes what is measured: leave published out",
        )
