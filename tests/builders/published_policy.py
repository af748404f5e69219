"""A small policy in OpenVLA's layout that has learned the toy benchmark, with a card that says how well it plays."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_rl.config import DemosConfig, PolicyConfig, SFTConfig, mini_model
from vla_rl.config.reproduce import ReproduceConfig
from vla_rl.envs.defaults import benchmark_env
from vla_rl.envs.registry import benchmark
from vla_rl.policies import OpenVLAPolicy, identity_statistics
from vla_rl.recipes.demos import collect_demos
from vla_rl.recipes.reproduce import MACHINE, reproduce
from vla_rl.recipes.sft import fine_tune
from vla_rl.runtime.files import read_json, write_json

SUITE = "toy:reach-red,grasp-block"
DATASET = "toy_demos"
PER_TASK = 30
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


def look(checkpoint: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A reproduction without practice on a machine that has been looked at: the doctor starts simulators."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MACHINE, {"checks": []})
    config = ReproduceConfig(
        SUITE, checkpoint=str(checkpoint), practice_iterations=0, out=str(out), trial_episodes=60,
    )  # fmt: skip
    return reproduce(replace(config, **changes))


def publish(policy: Path, out: Path) -> dict[str, Any]:
    """Measure the policy and write the card beside it."""
    return look(policy, out, publish=True, episodes_per_task=PER_TASK, preset="toy")


def other_copy(policy: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the checkpoint whose config.json says otherwise of the policy: unnorm_key, or the model's gripper.

    Beside its own statistics it has those of another dataset, half as wide and not in the middle.
    """
    shutil.copytree(policy, folder)
    config, file = read_json(folder / "config.json"), folder / "dataset_statistics.json"
    statistics = read_json(file)
    size = len(statistics[DATASET]["action"]["q01"])
    other = {"q01": [-0.2] * size, "q99": [0.8] * size, "mask": [True] * size}
    write_json(file, {**statistics, "another_robot": {"action": other}})
    section = config["vla_rl"]
    section["model"]["gripper"] = changes.pop("gripper", section["model"]["gripper"])
    section |= changes
    write_json(folder / "config.json", config)
    return folder
