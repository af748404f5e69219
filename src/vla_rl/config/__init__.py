"""Plain frozen dataclasses; importing them imports no torch."""

from vla_rl.config.ablation import AblationConfig
from vla_rl.config.curriculum import CurriculumConfig
from vla_rl.config.demonstrations import DemosConfig, FastConfig, SFTConfig
from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import ConfigError, UserError, nearest, require
from vla_rl.config.evaluation import EvalConfig
from vla_rl.config.export import ExportConfig
from vla_rl.config.groups import GRPOConfig, TPOConfig
from vla_rl.config.openvla import (
    OPENVLA_7B,
    OPENVLA_LIBERO_IMAGES,
    SCRATCH_MODELS,
    ImagePreprocessing,
    LanguageConfig,
    ModelConfig,
    VisionTowerConfig,
    mini_model,
    tiny_model,
)
from vla_rl.config.optimizer import OptimizerConfig
from vla_rl.config.policy import Conventions, CriticConfig, LoraConfig, PolicyConfig, VlmConfig
from vla_rl.config.ppo import PPOConfig
from vla_rl.config.reward import (
    LabelConfig,
    ProcessRewardConfig,
    RewardCollectConfig,
    RewardEvalConfig,
    RewardLabelConfig,
    RewardModelConfig,
    RewardScoreConfig,
)
from vla_rl.config.rollout import RolloutConfig
from vla_rl.config.run import RunConfig
from vla_rl.config.schedule import ScheduleConfig
from vla_rl.config.starts import StartsConfig
from vla_rl.config.training import TrainConfig

__all__ = [
    "OPENVLA_7B",
    "OPENVLA_LIBERO_IMAGES",
    "SCRATCH_MODELS",
    "AblationConfig",
    "ConfigError",
    "Conventions",
    "CriticConfig",
    "CurriculumConfig",
    "DemosConfig",
    "EnvConfig",
    "EvalConfig",
    "ExportConfig",
    "FastConfig",
    "GRPOConfig",
    "ImagePreprocessing",
    "LabelConfig",
    "LanguageConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PPOConfig",
    "PolicyConfig",
    "ProcessRewardConfig",
    "RewardCollectConfig",
    "RewardEvalConfig",
    "RewardLabelConfig",
    "RewardModelConfig",
    "RewardScoreConfig",
    "RolloutConfig",
    "RunConfig",
    "SFTConfig",
    "ScheduleConfig",
    "StartsConfig",
    "TPOConfig",
    "TrainConfig",
    "UserError",
    "VisionTowerConfig",
    "VlmConfig",
    "mini_model",
    "nearest",
    "require",
    "tiny_model",
]
