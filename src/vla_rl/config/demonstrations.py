"""Expert demonstrations, and fine-tuning on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

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
class FastConfig(Config, group="fast"):
    """FAST action tokens: byte-pair codes of the quantised cosine transform of a turn's actions."""

    vocabulary: Annotated[int, Ge(2), Le(65535)] = 256
    """Codes to learn from the demonstrations at most; the paper has 1024. Every number that their transform takes needs
    one of its own."""
    scale: Annotated[float, Gt(0), Le(1e6)] = 10.0
    """By which the transform of actions in -1..1 is multiplied before it is rounded: a larger one is finer and takes
    more tokens."""
    max_tokens: Annotated[int, Ge(0), Le(65536)] = 0
    """Tokens of a turn at most, the end token among them; 0: those of the longest turn of the demonstrations."""
    tokenizer: str = ""
    """Folder with a tokenizer in the format of physical-intelligence/fast to take instead of learning one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.max_tokens != 1,
            "fast.max_tokens: expected 0 or a number of at least 2, since the end of a turn is a token, got 1",
        )


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
    actions: Literal["", "fast"] = ""
    """What a turn's actions are written in. fast: FAST tokens, as many as they need. Empty: what the checkpoint writes
    them in, and from scratch a token for each number."""
    fast: FastConfig = field(default_factory=FastConfig)
    """How FAST tokens are made."""
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
