"""Preferences between logged episodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from vla_rl.config.bounds import (
    Config,
    Count,
    LearningRate,
    NotNegative,
    PixelsOrStored,
    Positive,
    Seed,
    ShareBelowOne,
    WeightDecay,
    Whole,
)
from vla_rl.config.errors import require
from vla_rl.config.policy import PolicyConfig


@dataclass(frozen=True)
class PreferConfig(Config, group="prefer", saved=("dataset", "policy")):
    """Trajectory-wise preference optimisation (GRAPE, arXiv:2411.19309) on logged episodes, without a simulator."""

    dataset: str = "runs/play"
    """Folder of a LeRobotDataset v3 with successes and failures (the feature next.success)."""
    out: str = "runs/prefer"
    """Run folder; the policy is written to <out>/policy."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The policy to improve: the one that played the episodes, or one that was fine-tuned on such."""
    camera: str = ""
    """Feature that holds the images; empty takes observation.images.image, or the only camera."""
    image_size: PixelsOrStored = 0
    """Height and width to which the images are resized; 0 takes what the policy looks at."""
    image_fit: Literal["pad", "crop", "stretch"] = "pad"
    """How frames that are not square become it, as when the policy was fine-tuned."""
    compare: Literal["task", "start"] = "task"
    """Which episodes are compared: those of one instruction, or only those from one initial state (the feature
    initial_state)."""
    pairs: Annotated[int, Ge(1), Le(1_000_000)] = 64
    """Pairs at most of episodes that are compared with each other; each episode takes part as evenly as can be."""
    success_weight: NotNegative = 1.0
    """Weight of success, 0 or 1, in the score by which episodes are ranked."""
    reward_model: str = ""
    """A process reward model, whose mean score over an episode's turns, 0 to 1, ranks it too; empty goes by success."""
    reward_weight: NotNegative = 0.5
    """Weight of the reward model's mean score."""
    beta: Positive = 0.1
    """How soon a pair counts as told apart: the loss is -log sigmoid(beta * difference of log-ratios)."""
    self_imitation_coef: NotNegative = 0.1
    """Coefficient of the negative log-likelihood of the chosen episodes, a mean over their turns (RPO,
    arXiv:2404.19733), which keeps them from becoming less likely together with the rejected ones; 0 is off."""
    window: Whole = 0
    """Turns that are compared at a time: the n-th so many of one episode with those of the other, as far as the
    shorter goes. 0: whole episodes."""
    epochs: Count = 4
    """Passes over the pairs."""
    minibatch: Count = 8
    """Pairs per optimizer step."""
    micro_batch: Whole = 0
    """Turns per forward pass, gradients being accumulated over a minibatch; 0 takes all turns of its pairs."""
    learning_rate: LearningRate = 1e-4
    """Peak learning rate of AdamW; it falls linearly to a tenth."""
    weight_decay: WeightDecay = 0.0
    """Decoupled weight decay of AdamW."""
    warmup_steps: Whole = 8
    """Optimizer steps over which the learning rate rises."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger Euclidean norm are scaled down to it."""
    validation_fraction: ShareBelowOne = 0.1
    """Share of each task's episodes kept apart: pairs of them say whether the policy learned more than these pairs."""
    seed: Seed = 0
    """Order of the pairs, and the episodes kept apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.success_weight > 0 or bool(self.reward_model and self.reward_weight),
            "nothing ranks the episodes: set --success-weight, or --reward-model with --reward-weight",
        )
