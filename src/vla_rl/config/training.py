"""Everything `vla-rl train` needs: one dataclass of the parts."""

from __future__ import annotations

from dataclasses import dataclass, field

from vla_rl.config.curriculum import CurriculumConfig
from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import require
from vla_rl.config.evaluation import EvalConfig
from vla_rl.config.optimizer import OptimizerConfig
from vla_rl.config.policy import PolicyConfig
from vla_rl.config.ppo import PPOConfig
from vla_rl.config.reward import ProcessRewardConfig
from vla_rl.config.rollout import RolloutConfig
from vla_rl.config.run import RunConfig
from vla_rl.config.schedule import ScheduleConfig


@dataclass(frozen=True)
class TrainConfig:
    """Everything `vla-rl train` needs. Saved, resolved, as config.json in the run folder."""

    algorithm: str = "ppo"
    """What learns from the windows of play: a name in `algorithms.registry.ALGORITHMS`."""
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    reward: ProcessRewardConfig = field(default_factory=ProcessRewardConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        require(
            not self.ppo.time_limit_is_terminal or self.policy.critic.time_fraction,
            "ppo.time_limit_is_terminal needs a critic that sees the time: set policy.critic.time_fraction, "
            "or let time limits bootstrap",
        )
        require(
            self.reward.chosen_kind == "success"
            or self.reward.form != "potential"
            or self.ppo.time_limit_is_terminal,
            "reward.form potential needs ppo.time_limit_is_terminal: where a time limit bootstraps, the potential of "
            "the final observation would be missing; take the additive form",
        )
