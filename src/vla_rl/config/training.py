"""Everything `vla-rl train` needs: one dataclass of the parts."""

from __future__ import annotations

from dataclasses import dataclass, field

from vla_rl.config.bounds import Config
from vla_rl.config.curriculum import CurriculumConfig
from vla_rl.config.env import ONE_IMAGE, EnvConfig
from vla_rl.config.errors import require
from vla_rl.config.evaluation import EvalConfig
from vla_rl.config.groups import GRPOConfig, TPOConfig
from vla_rl.config.optimizer import OptimizerConfig
from vla_rl.config.parallel import ParallelConfig
from vla_rl.config.policy import PolicyConfig
from vla_rl.config.ppo import PPOConfig
from vla_rl.config.reward import ProcessRewardConfig
from vla_rl.config.rollout import RolloutConfig
from vla_rl.config.run import RunConfig
from vla_rl.config.schedule import ScheduleConfig
from vla_rl.config.starts import StartsConfig


@dataclass(frozen=True)
class TrainConfig(Config, saved=("env", "policy", "ppo", "run")):
    """Everything `vla-rl train` needs. Saved, resolved, as config.json in the run folder."""

    algorithm: str = "ppo"
    """What learns from play: ppo, grpo or tpo; any name in `algorithms.registry.ALGORITHMS`."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Simulators, tasks, and how a turn maps to simulator steps."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The policy to improve, and its critic."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How long the run lasts."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """How the policy plays between two updates."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW on the policy's parameters, and its learning rate."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Hyper-parameters of PPO."""
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    """Hyper-parameters of GRPO."""
    tpo: TPOConfig = field(default_factory=TPOConfig)
    """Hyper-parameters of TPO."""
    reward: ProcessRewardConfig = field(default_factory=ProcessRewardConfig)
    """A process reward model's reward beside success."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    """Which task the next episode plays."""
    starts: StartsConfig = field(default_factory=StartsConfig)
    """Which episodes start at states of demonstrations."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """How the policy is evaluated before, during and after."""
    run: RunConfig = field(default_factory=RunConfig)
    """Run folder, seed, checkpoints, logs."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How many processes train together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.env.wrist_camera, f"env.wrist_camera: {ONE_IMAGE}")
        if self.compares_groups:
            self._check_groups()
            return
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

    def _check_groups(self) -> None:
        require(
            self.reward.chosen_kind == "success" or self.reward.form != "potential",
            f"reward.form potential changes nothing in {self.algorithm.upper()}: over an episode it adds up to the "
            "same for all of a group, which begin alike. Take the additive form, or progress",
        )
        require(
            self.parallel.staleness == 0,
            f"parallel.staleness {self.parallel.staleness} plays one window ahead, and {self.algorithm.upper()} plays "
            "whole episodes of the present policy: set parallel.staleness 0",
        )

        require(
            self.algorithm != "tpo"
            or self.reward.chosen_kind != "success"
            or self.tpo.success_weight + self.tpo.likelihood_weight > 0,
            "tpo.reward_weight alone ranks nothing where success is the only reward, and all episodes of a group tie: "
            "set tpo.success_weight or tpo.likelihood_weight, or a dense reward (reward.kind)",
        )

    @property
    def compares_groups(self) -> bool:
        """Whether the algorithm plays groups of whole episodes from one initial state, and has no critic."""
        return self.algorithm in ("grpo", "tpo")

    @property
    def discount(self) -> float:
        """Of the future in a return, for each turn: an episode of a group is worth the plain sum of its rewards."""
        return 1.0 if self.compares_groups else self.ppo.gamma

    @property
    def horizon_ends_returns(self) -> bool:
        """Whether nothing comes after a time limit (`ppo.time_limit_is_terminal`)."""
        return self.compares_groups or self.ppo.time_limit_is_terminal

    @property
    def needs_reference(self) -> bool:
        """Whether the policy that the run starts from is looked at again and again."""
        if self.algorithm == "tpo":
            return self.tpo.reference == "start"
        return (self.grpo if self.algorithm == "grpo" else self.ppo).kl_coef > 0
