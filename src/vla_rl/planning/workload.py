"""What a training run asks for, in sizes: from its configuration alone, nothing is downloaded or loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from vla_rl.config import (
    OPENVLA_7B,
    SCRATCH_MODELS,
    EnvConfig,
    LoraConfig,
    ModelConfig,
    TrainConfig,
    UserError,
)
from vla_rl.envs.registry import BENCHMARKS, benchmark, suites_of
from vla_rl.envs.suites import suite_parts
from vla_rl.policies.critic import build_critic
from vla_rl.policies.openvla.config_files import read_checkpoint_config
from vla_rl.policies.openvla.memory import count_weights
from vla_rl.policies.openvla.model import critic_sizes
from vla_rl.policies.shapes import shapes_alone
from vla_rl.runtime.bases import checkpoint_kind
from vla_rl.runtime.external import shown
from vla_rl.runtime.locate import locate_policy

LARGE = 1e9
"""Weights from which a policy needs a GPU, and takes bfloat16 on one."""
PUBLISHED = "openvla-7b"
PLANNED = "openvla"


@dataclass(frozen=True)
class Workload:
    """A run in sizes."""

    config: TrainConfig
    model: ModelConfig
    benchmark: str
    """As in `envs.registry.BENCHMARKS`; of a union the first."""
    in_process: bool
    """The environments play in the rank's own process."""
    tokens: int
    """Action tokens of a turn."""
    weights: int
    trained: int
    """Of them, or of the adapters."""
    critic: int
    on_gpu: bool
    notes: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    """All of a union's."""

    @property
    def lora(self) -> LoraConfig | None:
        return self.config.policy.lora

    @property
    def turns(self) -> int:
        """Of a window, in all environments."""
        return self.config.rollout.turns * self.config.env.num_envs

    @property
    def itemsize(self) -> int:
        """Bytes of a weight while it computes."""
        dtype = self.config.policy.dtype
        if dtype == "auto":
            dtype = "bfloat16" if self.on_gpu and self.weights >= LARGE else "float32"
        return 2 if dtype == "bfloat16" else 4

    @property
    def image_bytes(self) -> int:
        return self.config.env.image_size**2 * 3

    @property
    def separate_critic(self) -> bool:
        return self.config.policy.critic.kind == "separate"


def workload(config: TrainConfig, gpus: int) -> Workload:
    """The sizes of a run on nodes with so many GPUs each.

    UserError where the size of the policy cannot be known, where it needs a GPU and there is none, and for an algorithm
    that does not play windows.
    """
    if config.compares_groups:
        raise UserError(
            f"{config.algorithm.upper()} cannot be planned: how many episodes an iteration plays depends on how they "
            "end. Plan PPO's preset for the same policy and suite; simulators and inference cost the same"
        )
    model, notes = _model(config)
    suite = config.env.suite
    played = benchmark(suite)
    benchmarks = _benchmarks(suite)
    config = replace(config, env=_mean_env(config.env))
    wanted = config.policy.device
    if gpus == 0 and wanted not in ("auto", "cpu"):
        raise UserError(f"policy.device {wanted} needs a GPU: set --gpus to how many each node has")
    on_gpu = gpus > 0 and wanted != "cpu"
    lora = config.policy.lora
    weights, trained = count_weights(model, lora)
    if weights >= LARGE and not on_gpu and wanted != "cpu":
        raise UserError(
            f"{model.name} has {weights / 1e9:.1f} billion weights and needs a GPU: set --gpus and --gpu-memory, or "
            "--policy.device cpu if it is to be planned without one"
        )
    with shapes_alone():
        critic = build_critic(config.policy.critic, critic_sizes(model))
    return Workload(
        config=config,
        model=model,
        benchmark=benchmarks[0],
        benchmarks=benchmarks,
        in_process=played.in_process and config.env.num_workers == 0,
        tokens=played.action_dim * config.env.action_chunk,
        weights=weights,
        trained=trained,
        critic=sum(parameter.numel() for parameter in critic.parameters()),
        on_gpu=on_gpu,
        notes=notes,
    )


def _require_planned(kind: str) -> None:
    """UserError for a class of policies whose costs are not known."""
    if kind not in ("", PLANNED):
        raise UserError(
            f"vla-rl plan knows the costs of policies of class {PLANNED} alone, this one is of class {shown(kind)}"
        )


def _mean_env(env: EnvConfig) -> EnvConfig:
    """`env` with one clock for all its suites: the mean over suites of their turns, and of the steps of an action.

    Unchanged where they all have what `env` says.
    """
    settings = list(suites_of(env).values())
    if all(
        own.horizon == env.horizon and own.action_repeat == env.action_repeat for own in settings
    ):
        return env
    return replace(
        env,
        horizon=round(fmean(own.horizon for own in settings)),
        action_repeat=round(fmean(own.action_repeat for own in settings)),
    )


def _benchmarks(suite: str) -> tuple[str, ...]:
    """Of a suite, or of a union's suites, without repetition; one that is not registered is called by its title."""
    played = [benchmark(part) for part in suite_parts(suite)]
    names = [name for name, known in BENCHMARKS.items() if any(known is one for one in played)]
    others = [one.title for one in played if all(one is not known for known in BENCHMARKS.values())]
    return tuple(dict.fromkeys([*names, *others]))


def _model(config: TrainConfig) -> tuple[ModelConfig, tuple[str, ...]]:
    """The model that the run would load, and what had to be supposed."""
    checkpoint = config.policy.checkpoint
    size = config.env.image_size
    _require_planned(config.policy.kind)
    if not checkpoint:
        name = config.policy.scratch or "tiny"
        said = (
            ()
            if config.policy.scratch
            else ("no policy.checkpoint given: the tiny policy of `vla-rl sft`",)
        )
        return SCRATCH_MODELS[name](size), said
    if Path(checkpoint).exists():
        folder, _ = locate_policy(Path(checkpoint))
        _require_planned(config.policy.kind or checkpoint_kind(folder, config.policy.base))
        return read_checkpoint_config(folder).model, ()
    if "openvla" in checkpoint.lower() and "/" in checkpoint:
        return OPENVLA_7B, (
            f"{checkpoint} is not here: counted with the published shapes of {PUBLISHED}",
        )
    raise UserError(
        f"there is no policy at {checkpoint}, so its size cannot be known: give the folder of one that is here, or the "
        "hub id of an OpenVLA checkpoint"
    )
