"""A small policy in OpenVLA's layout that has learned the toy benchmark, with a card that says how well it plays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vla_rl.config import DemosConfig, PolicyConfig, SFTConfig, mini_model
from vla_rl.config.reproduce import ReproduceConfig
from vla_rl.envs.defaults import benchmark_env
from vla_rl.envs.registry import benchmark
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.reproduce import reproduce
from vla_rl.recipes.sft import fine_tune

SUITE = "toy"
DATASET = "toy_demos"
PER_TASK = 12
"""Initial states of each task that the figure is measured on."""


def demonstrate(root: Path, per_task: int = 40) -> Path:
    """Demonstrations of the scripted expert, in frames twice as large as the model's."""
    env = replace(benchmark_env(SUITE), image_size=64)
    config = DemosConfig(env=env, out=str(root / DATASET), episodes_per_task=per_task)
    return collect_demos(config)


def fine_tuned(root: Path, demos: Path, epochs: int = 60) -> Path:
    """A policy fine-tuned on them: OpenVLA's images and gripper, and two layers, as either class needs."""
    model = mini_model()
    model = replace(model, language=replace(model.language, layers=2))
    suite = benchmark(SUITE)
    statistics = identity_statistics("pretraining", suite.action_dim)
    fresh = OpenVLAPolicy.create(
        model, suite.instructions(SUITE), statistics, suite.action_dim, 1,
        PolicyConfig(images="openvla-libero", gripper="openvla", device="cpu"),
    )  # fmt: skip
    fresh.save(root / "fresh")
    config = SFTConfig(
        dataset=str(demos),
        out=str(root / "sft"),
        policy=PolicyConfig(checkpoint=str(root / "fresh"), device="cpu"),
        action_chunk=1,
        epochs=epochs,
        random_shift=0,
        validation_fraction=0.0,
    )
    return fine_tune(config)


def publish(policy: Path, root: Path) -> dict:
    """Measure the policy and write the card beside it."""
    config = ReproduceConfig(
        SUITE, checkpoint=str(policy), publish=True, episodes_per_task=PER_TASK, preset="toy",
        practice_iterations=0, out=str(root / "published"),
    )  # fmt: skip
    return reproduce(config)
