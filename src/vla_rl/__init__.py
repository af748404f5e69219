"""VLA-RL: make pretrained vision-language-action policies better by practice.

    import vla_rl

    run = vla_rl.train(vla_rl.preset("toy"))              # a folder: checkpoints, metrics, evaluations
    result = vla_rl.evaluate(run)                         # 30 held-out states of each task, once
    print(result["overall"]["success_rate"])

The names below are the public interface (docs/api.md). A name is imported when it is first used: importing the package
imports no torch, no numpy and no simulator.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:  # for type checkers and editors; the table below says the same
    from vla_rl.algorithms.advantages import compute_advantages
    from vla_rl.algorithms.learner import Learner
    from vla_rl.algorithms.ppo import PPO
    from vla_rl.algorithms.registry import ALGORITHMS, build_learner
    from vla_rl.config import (
        ConfigError,
        EnvConfig,
        EvalConfig,
        PolicyConfig,
        PPOConfig,
        TrainConfig,
        UserError,
    )
    from vla_rl.curriculum import TaskSampler
    from vla_rl.envs.benchmark import Benchmark
    from vla_rl.envs.check import check_env
    from vla_rl.envs.defaults import benchmark_env, laptop_env
    from vla_rl.envs.env import Env, VectorEnv
    from vla_rl.envs.gymnasium.benchmark import gymnasium_benchmark
    from vla_rl.envs.registry import BENCHMARKS
    from vla_rl.envs.vector.make import make_vector_env
    from vla_rl.policies.policy import Policy, ValuePolicy
    from vla_rl.policies.registry import POLICIES
    from vla_rl.recipes.demos import collect_demos
    from vla_rl.recipes.evaluate import evaluate
    from vla_rl.recipes.loading import load_policy
    from vla_rl.recipes.presets import PRESETS, preset
    from vla_rl.recipes.sft import fine_tune
    from vla_rl.recipes.train import train
    from vla_rl.report.page.write import write_report
    from vla_rl.rewards.registry import REWARDS, build_reward
    from vla_rl.rewards.reward import RewardFunction
    from vla_rl.rollout import Collector
    from vla_rl.types import EpisodeSpec, Observation, Rollout

__all__ = [
    "ALGORITHMS",
    "BENCHMARKS",
    "POLICIES",
    "PPO",
    "PRESETS",
    "REWARDS",
    "Benchmark",
    "Collector",
    "ConfigError",
    "Env",
    "EnvConfig",
    "EpisodeSpec",
    "EvalConfig",
    "Learner",
    "Observation",
    "PPOConfig",
    "Policy",
    "PolicyConfig",
    "RewardFunction",
    "Rollout",
    "TaskSampler",
    "TrainConfig",
    "UserError",
    "ValuePolicy",
    "VectorEnv",
    "benchmark_env",
    "build_learner",
    "build_reward",
    "check_env",
    "collect_demos",
    "compute_advantages",
    "evaluate",
    "fine_tune",
    "gymnasium_benchmark",
    "laptop_env",
    "load_policy",
    "make_vector_env",
    "preset",
    "train",
    "write_report",
]

_NAMES_BY_MODULE = {
    "algorithms.advantages": "compute_advantages",
    "algorithms.learner": "Learner",
    "algorithms.ppo": "PPO",
    "algorithms.registry": "ALGORITHMS build_learner",
    "config": "ConfigError EnvConfig EvalConfig PPOConfig PolicyConfig TrainConfig UserError",
    "curriculum": "TaskSampler",
    "envs.benchmark": "Benchmark",
    "envs.check": "check_env",
    "envs.defaults": "benchmark_env laptop_env",
    "envs.env": "Env VectorEnv",
    "envs.gymnasium.benchmark": "gymnasium_benchmark",
    "envs.registry": "BENCHMARKS",
    "envs.vector.make": "make_vector_env",
    "policies.policy": "Policy ValuePolicy",
    "policies.registry": "POLICIES",
    "recipes.demos": "collect_demos",
    "recipes.evaluate": "evaluate",
    "recipes.loading": "load_policy",
    "recipes.presets": "PRESETS preset",
    "recipes.sft": "fine_tune",
    "recipes.train": "train",
    "report.page.write": "write_report",
    "rewards.registry": "REWARDS build_reward",
    "rewards.reward": "RewardFunction",
    "rollout": "Collector",
    "types": "EpisodeSpec Observation Rollout",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}


def _register_with_gymnasium() -> None:
    """Give Gymnasium our suites by name, where it is imported already; see `vla_rl.gymnasium_envs`."""
    gymnasium = sys.modules.get("gymnasium")
    if gymnasium is not None and hasattr(gymnasium, "registry"):
        import_module(f"{__name__}.gymnasium_envs").register(gymnasium)


_register_with_gymnasium()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
