"""Expert demonstrations, and fine-tuning on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vla_rl.config.bounds import (
    ActionChunk,
    Config,
    Count,
    LearningRate,
    NotNegative,
    PixelsOrStored,
    Positive,
    Seed,
    ShareBelowOne,
    Shift,
    WeightDecay,
    Whole,
)  # fmt: skip
from vla_rl.config.env import ONE_IMAGE, EnvConfig
from vla_rl.config.errors import require
from vla_rl.config.policy import PolicyConfig


@dataclass(frozen=True)
class DemosConfig(Config):
    """Expert demonstrations from the simulator's scripted policies."""

    env: EnvConfig = field(default_factory=EnvConfig)
    """Where the demonstrations are played."""
    out: str = "runs/demos"
    """Folder of the LeRobotDataset v3 to write; must not exist yet."""
    episodes_per_task: Count = 5
    """Successful episodes to keep of every task."""
    noise: NotNegative = 0.0
    """Standard deviation of Gaussian noise on the expert's actions, for coverage; the clean action is stored."""
    image_format: Literal["png", "mp4"] = "png"
    """png: every frame as it is. mp4: lossy video, in a fraction of the space."""
    snapshots: bool = False
    """Keep the simulator's whole state before every action, about 3 kB each, so that practice can start there
    (`--starts.dataset` of `vla-rl train`)."""
    seed: Seed = 0
    """Chooses the initial states and the noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.env.wrist_camera, f"env.wrist_camera: {ONE_IMAGE}")


@dataclass(frozen=True)
class SFTConfig(Config, group="sft", saved=("dataset", "policy")):
    """Supervised fine-tuning: cross-entropy on the expert's action tokens."""

    dataset: str = "runs/demos"
    """Folder of a LeRobotDataset v3."""
    camera: str = ""
    """Feature that holds the images; empty takes observation.images.image, or the only camera."""
    image_size: PixelsOrStored = 0
    """Height and width to which the images are resized; 0 keeps them as stored."""
    image_fit: Literal["pad", "crop", "stretch"] = "pad"
    """How frames that are not square become it, in training and later in play. pad: black bars, as openpi and lerobot
    do. crop: the middle square. stretch: out of proportion, as OpenVLA and Octo do."""
    episodes_per_task: Whole = 0
    """The first so many demonstrations of each task; 0 takes all."""
    successes: tuple[str, ...] = ()
    """Folders that `vla-rl reward collect` wrote. What succeeded there is learned from like a demonstration: expert
    iteration, in which the policy is its own expert."""
    out: str = "runs/sft"
    """Run folder; the policy is written to <out>/policy."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The policy to fine-tune."""
    action_chunk: ActionChunk = 2
    """Actions per turn; targets past the end of an episode repeat its last action."""
    epochs: Count = 60
    """Passes over the training episodes."""
    batch_size: Count = 64
    """Samples per optimizer step."""
    micro_batch: Whole = 0
    """Samples per forward pass, gradients being accumulated over a batch; 0 takes the whole batch."""
    learning_rate: LearningRate = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: WeightDecay = 0.01
    """Decoupled weight decay of AdamW."""
    warmup_steps: Whole = 50
    """Optimizer steps over which the learning rate rises; over the whole run a cosine lets it fall to a twentieth."""
    random_shift: Shift = 2
    """Images are shifted by up to so many pixels each way."""
    validation_fraction: ShareBelowOne = 0.1
    """Share of each task's episodes kept for the validation loss (at least one when there are 5 or more)."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger Euclidean norm are scaled down to it."""
    seed: Seed = 0
    """Seeds the weights that start from nothing, the order of samples, the shifts and the validation episodes."""
