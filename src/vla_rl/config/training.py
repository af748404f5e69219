"""Hyper-parameters of demonstrations, fine-tuning, PPO, curriculum, evaluation and the run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vla_rl.config.env import EnvConfig
from vla_rl.config.errors import require
from vla_rl.config.model import PolicyConfig
from vla_rl.config.reward import ProcessRewardConfig


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
    """Feature that holds the pictures; empty takes observation.images.image, or the only camera."""
    image_size: int = 0
    """Height and width to which the pictures are resized; 0 keeps them as stored."""
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
    """Pictures are shifted by up to so many pixels each way."""
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


@dataclass(frozen=True)
class CurriculumConfig:
    """Which task the next episode plays."""

    mode: Literal["paper", "frontier", "levels", "uniform"] = "paper"
    """paper: P ~ exp((0.5 - s)/tau) as printed. frontier: P ~ exp(-|s - 0.5|/tau). levels: harder tasks open when
    the level's recent success passes `level_threshold`. uniform: every task alike."""
    tau: float = 0.4
    """Temperature of `paper` and `frontier`; the paper gives none."""
    window: int = 40
    """Success of a task is its mean over so many recent episodes."""
    prior: float = 0.5
    """Success assumed before a task has been played."""
    floor: float = 0.02
    """Least probability of any task, so that none is forgotten or never tried."""
    level_threshold: float = 0.7
    level_window: int = 10
    level_share: float = 0.7
    """Share of draws from the current level in `levels`; the rest from the earlier ones."""

    def __post_init__(self) -> None:
        require(self.tau > 0, f"curriculum.tau must be positive, got {self.tau}")
        require(0 <= self.floor < 1, f"curriculum.floor must lie in [0, 1), got {self.floor}")
        require(self.window >= 1, f"curriculum.window must be at least 1, got {self.window}")
        require(
            self.level_window >= 1,
            f"curriculum.level_window must be at least 1, got {self.level_window}",
        )
        for name in ("prior", "level_threshold", "level_share"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"curriculum.{name} must lie in [0, 1], got {value}")


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation on action tokens."""

    iterations: int = 60
    """PPO updates; each follows one window of `turns` turns in every environment."""
    minutes: float = 0.0
    """Stop after so many minutes of training instead, if positive; `iterations` is then the upper limit."""
    turns: int = 50
    """Turns per environment and iteration."""
    temperature: float = 1.0
    """Sampling temperature; the same one is used in the loss."""
    epochs: int = 2
    minibatch: int = 256
    micro_batch: int = 0
    """Samples per forward pass, gradients being accumulated over a minibatch; 0 takes the whole minibatch, -1 as many
    as the free memory allows."""
    learning_rate: float = 1e-4
    critic_learning_rate: float = 1e-3
    adam_beta2: float = 0.99
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 24
    """Linear learning-rate warm-up in policy optimizer steps."""
    final_learning_rate: float = 1.0
    """The policy learning rate decays linearly to this fraction of itself over the run; 1 keeps it."""
    gamma: float = 0.99
    gae_lambda: float = 0.8
    value_lambda: float = 1.0
    """Lambda of the critic's targets; 1 is Monte-Carlo, bootstrapped at the window's edge."""
    time_limit_is_terminal: bool = True
    """True: the horizon is part of the task, as in every benchmark that counts successes within it, and nothing comes
    after it; needs a critic that sees the time fraction (Pardo et al. 2018, arXiv:1712.00378). False: a time limit
    bootstraps from the value of the true final observation."""
    ratio: Literal["token", "action"] = "token"
    """Importance ratio per token, or per action (product over the K tokens, as in the paper)."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 0.0
    """Lower bound on the surrogate for negative advantages (Ye et al. 2020), e.g. 3; 0 is off."""
    target_kl: float = 0.0
    """Stop an iteration's epochs when the k3 estimate per turn passes this; 0 is off."""
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    """Coefficient of the k3 estimate of KL to the frozen initial policy."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    imitation_coef: float = 0.1
    """Coefficient of the negative log-likelihood of turns from episodes of this window that succeeded."""
    normalize_advantages: bool = True
    """Whiten over the whole rollout (never per minibatch)."""
    max_grad_norm: float = 1.0
    critic_max_grad_norm: float = 1.0
    value_coef: float = 1.0
    """Weight of the value loss; matters only for a shared, attached critic."""
    value_clip: float = 0.0
    """Clip range of the value loss; 0 is off."""
    value_loss: Literal["mse", "huber"] = "mse"
    critic_epochs: int = 2
    """Passes of the separate critic over its replay each iteration."""
    critic_first_epochs: int = 9
    """The same in the first iteration."""
    critic_replay: int = 3
    """Windows the separate critic learns from."""
    critic_warmup: int = 2
    """Iterations in which only the critic learns."""
    critic_warmup_until_explained: bool = False
    """Go on with the warm-up until explained variance is positive (at most 10 times `critic_warmup`)."""
    recompute_log_probs: bool = False
    """Take the learner's log-probs of the played tokens as the old ones instead of the sampler's. For models in
    bfloat16: cached decoding and the learner's one pass round differently there (by 0.1 and more), and the ratio would
    start away from 1. Costs one more forward pass over the window; in float32 both are equal to 1e-5."""
    logprob_tolerance: float = 1e-3
    """Largest allowed difference between the sampler's and the learner's log-probs at the first minibatch."""

    def __post_init__(self) -> None:
        for name in (
            "iterations",
            "turns",
            "epochs",
            "minibatch",
            "critic_epochs",
            "critic_replay",
        ):
            require(
                getattr(self, name) >= 1,
                f"ppo.{name} must be at least 1, got {getattr(self, name)}",
            )
        for name in ("learning_rate", "critic_learning_rate", "temperature", "max_grad_norm"):
            require(
                getattr(self, name) > 0, f"ppo.{name} must be positive, got {getattr(self, name)}"
            )
        for name in ("gamma", "gae_lambda", "value_lambda", "final_learning_rate"):
            require(
                0 <= getattr(self, name) <= 1,
                f"ppo.{name} must lie in [0, 1], got {getattr(self, name)}",
            )
        for name in (
            "clip_low",
            "clip_high",
            "entropy_coef",
            "kl_coef",
            "imitation_coef",
            "target_kl",
            "critic_warmup",
            "warmup_steps",
        ):
            require(
                getattr(self, name) >= 0, f"ppo.{name} must be 0 or more, got {getattr(self, name)}"
            )
        require(
            self.micro_batch >= -1,
            f"ppo.micro_batch must be -1 (as memory allows), 0 (a whole minibatch) or more, got {self.micro_batch}",
        )
        require(
            self.kl_coef == 0 or self.kl_estimator != "k1",
            "ppo.kl_estimator k1 has an expected gradient of zero, as a penalty it only adds noise: take k2 or k3",
        )
        require(
            self.dual_clip == 0 or self.dual_clip > 1,
            f"ppo.dual_clip must be 0 (off) or above 1, got {self.dual_clip}",
        )


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation protocol: each (task, initial state) exactly once."""

    suite: str = ""
    """Suite to evaluate on; empty takes the training suite."""
    split: Literal["auto", "held-out", "train", "all"] = "auto"
    """Initial states to play: those never trained on, the others, or all. auto is the benchmark's protocol: held-out on
    Meta-World, all on LIBERO."""
    episodes_per_task: int | None = None
    """The first so many of them; by default the protocol's: 30 on Meta-World, all on LIBERO."""
    temperature: float = 0.0
    """0 is greedy; above 0 samples, with randomness fixed by (seed, task, initial state, turn)."""
    seed: int = 0
    videos: int = 0
    """Episodes per task of which the pictures are kept (first successes and failures alike)."""

    def __post_init__(self) -> None:
        require(
            self.episodes_per_task is None or self.episodes_per_task >= 1,
            f"episodes_per_task must be at least 1, got {self.episodes_per_task}: there would be nothing to evaluate",
        )
        require(
            self.temperature >= 0,
            f"temperature must be 0 (greedy) or positive, got {self.temperature}",
        )


@dataclass(frozen=True)
class RunConfig:
    """The run folder, seeds, checkpoints and sinks."""

    name: str = ""
    """Name of the run folder; empty takes the preset's name and the time."""
    root: str = "runs"
    seed: int = 0
    save_every: int = 10
    """Iterations between checkpoints; the last one is always saved."""
    keep: int = 2
    """Checkpoints kept beside the best one."""
    eval_every: int = 0
    """Iterations between evaluations during training; 0 evaluates only before and after."""
    threads: int = 0
    """Shares into which the learner splits a minibatch on the CPU, one thread each; 0 takes one per core."""
    torch_threads: int = 1
    """Threads inside each torch operation. Above 1 any other process on the machine makes training many times slower;
    worth it only for large models on an idle CPU."""
    tensorboard: bool = True
    wandb: bool = False
    """Also log to Weights & Biases (needs the extra `vla-rl[wandb]`)."""

    def __post_init__(self) -> None:
        require(self.save_every >= 1, f"run.save_every must be at least 1, got {self.save_every}")
        require(self.keep >= 1, f"run.keep must be at least 1, got {self.keep}")
        require(self.threads >= 0, f"run.threads must be 0 (all cores) or more, got {self.threads}")
        require(
            self.torch_threads >= 0,
            f"run.torch_threads must be 0 (all cores) or more, got {self.torch_threads}",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Everything `vla-rl train` needs. Saved, resolved, as config.json in the run folder."""

    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
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
            not self.reward.judge
            or self.reward.form != "potential"
            or self.ppo.time_limit_is_terminal,
            "reward.form potential needs ppo.time_limit_is_terminal: where a time limit bootstraps, the potential of "
            "the final observation would be missing; take the additive form",
        )


@dataclass(frozen=True)
class ExportConfig:
    """Write a policy for other software: merged in OpenVLA's format, or its adapters in PEFT's."""

    checkpoint: str
    """A run folder, one of its checkpoints, a policy folder or a hub id."""
    out: str = "runs/export"
    """Folder to write; must not exist, or be empty."""
    merged: bool = False
    """One checkpoint in OpenVLA's format, adapters merged into the weights (the default)."""
    adapter: bool = False
    """The adapters alone, in PEFT's format."""
    base: str = ""
    """Folder or hub id of the model that the adapters belong to, where it is not the one they name themselves."""
    unnorm_key: str = ""
    """Dataset whose action statistics the policy un-normalises with, where the checkpoint has several."""
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    """Precision of merged weights; stored takes that of the base's files, float32 loses nothing of a small update."""
    shard_gigabytes: float = 5.0
    """Largest file of weights, in GB (10^9 bytes)."""

    def __post_init__(self) -> None:
        require(
            not (self.merged and self.adapter),
            "export: --merged and --adapter are two forms, give one of them",
        )
        require(
            self.shard_gigabytes > 0,
            f"export.shard_gigabytes must be positive, got {self.shard_gigabytes}",
        )


@dataclass(frozen=True)
class QuickstartConfig:
    """The main job from nothing to a report: demonstrations, fine-tuning, PPO, evaluation."""

    out: str = "runs/quickstart"
    """Folder of everything: demos, sft, the training run `ppo`, report.html."""
    preset: str = "metaworld-mt5"
    """Training preset; its suite is demonstrated, fine-tuned on and practised."""
    minutes: float = 8.0
    """Minutes of PPO."""
    demos_per_task: int = 5
    """Demonstrations per task to fine-tune on; one more is collected for the validation loss."""
    sft_epochs: int = 28
    """Passes over the demonstrations. Few on purpose: practice starts from a policy that often fails (30 epochs: about
    four in ten of its episodes succeed; 60: about three quarters)."""
    episodes_per_task: int | None = None
    """Held-out initial states per task, evaluated before and after; by default 30 on Meta-World, all on LIBERO."""
    seed: int = 0
    force: bool = False
    """Throw away what an earlier quickstart left in `out` and start anew."""

    def __post_init__(self) -> None:
        require(self.minutes > 0, f"quickstart.minutes must be positive, got {self.minutes}")
