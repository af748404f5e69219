"""Plain frozen dataclasses; importing them imports no torch."""

from vla_rl.config.ablation import AblationConfig
from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, UserError, nearest, require
from vla_rl.config.model import (
    OPENVLA_7B,
    OPENVLA_LIBERO_PICTURES,
    CriticConfig,
    LanguageConfig,
    LoraConfig,
    ModelConfig,
    PictureConfig,
    PolicyConfig,
    VisionTowerConfig,
    tiny_model,
)
from vla_rl.config.reward import (
    LabelConfig,
    ProcessRewardConfig,
    RewardCollectConfig,
    RewardEvalConfig,
    RewardLabelConfig,
    RewardModelConfig,
    RewardScoreConfig,
)
from vla_rl.config.training import (
    CurriculumConfig,
    DemosConfig,
    EvalConfig,
    ExportConfig,
    PPOConfig,
    RunConfig,
    SFTConfig,
    TrainConfig,
)

__all__ = [
    "OPENVLA_7B",
    "OPENVLA_LIBERO_PICTURES",
    "AblationConfig",
    "ConfigError",
    "CriticConfig",
    "CurriculumConfig",
    "DemosConfig",
    "EnvConfig",
    "EvalConfig",
    "ExportConfig",
    "LabelConfig",
    "LanguageConfig",
    "LoraConfig",
    "ModelConfig",
    "PPOConfig",
    "PictureConfig",
    "PolicyConfig",
    "ProcessRewardConfig",
    "RewardCollectConfig",
    "RewardEvalConfig",
    "RewardLabelConfig",
    "RewardModelConfig",
    "RewardScoreConfig",
    "RunConfig",
    "SFTConfig",
    "TrainConfig",
    "UserError",
    "VisionTowerConfig",
    "nearest",
    "require",
    "tiny_model",
]
