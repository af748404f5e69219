"""Expert demonstrations, and fine-tuning on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import require
from vla_rl.config.policy import PolicyConfig


@dataclass(frozen=True)
class DemosConfig:
    """Expert demonstrations from the simulator's scripted policies."""

    env: EnvConfig = field(default_factory=EnvConfig)
    out: str = "runs/demos"
    """Folder of the LeRobotDataset v3 to write; must not exist yet."""
    episodes_per_task: int = 5
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the expert's actions, for coverage; the clean action is stored."""
    image_format: Literal["png", "mp4"] = "png"
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.episodes_per_task >= 1,
            f"episodes_per_task must be at least 1, got {self.episodes_per_task}",
        )
        require(self.noise >= 0, f"noise must be 0 or more, got {self.noise}")


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning: cross-entropy on the expert's action tokens."""

    dataset: str = "runs/demos"
    """Folder of a LeRobotDataset v3."""
    camera: str = ""
    """Feature that holds the images; empty takes observation.images.image, or the only camera."""
    image_size: int = 0
    """Height and width to which the images are resized; 0 keeps them as stored."""
    image_fit: Literal["pad", "crop", "stretch"] = "pad"
    """How frames that are not square become it, in training and later in play. pad: black bars, as openpi and lerobot
    do. crop: the middle square. stretch: out of proportion, as OpenVLA and Octo do."""
    out: str = "runs/sft"
    """Run folder; the policy is written to <out>/policy."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    action_chunk: int = 2
    """Actions per turn; targets past the end of an episode repeat its last action."""
    epochs: int = 60
    batch_size: int = 64
    micro_batch: int = 0
    """Samples per forward pass, gradients being accumulated over a batch; 0 takes the whole batch."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    random_shift: int = 2
    """Images are shifted by up to so many pixels each way."""
    validation_fraction: float = 0.1
    """Share of each task's episodes kept for the validation loss (at least one when there are 5 or more)."""
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "action_chunk"):
            require(
                getattr(self, name) >= 1,
                f"sft.{name} must be at least 1, got {getattr(self, name)}",
            )
        require(
            self.learning_rate > 0, f"sft.learning_rate must be positive, got {self.learning_rate}"
        )
        require(0 <= self.validation_fraction < 1, "sft.validation_fraction must lie in [0, 1)")
        require(
            self.image_size >= 0,
            f"sft.image_size must be 0 (as stored) or positive, got {self.image_size}",
        )
