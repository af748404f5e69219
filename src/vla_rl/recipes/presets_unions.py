"""Presets of several suites in one run."""

from __future__ import annotations

from dataclasses import replace

from vla_rl.config import EvalConfig, RolloutConfig, TrainConfig
from vla_rl.envs.defaults import benchmark_env, laptop_env

SUITE = "libero-40"

SUMMARIES = {
    "libero-40-openvla-7b": "the paper on four suites together; give a checkpoint of all four",
    "libero-40-tiny": "a small policy on LIBERO's four suites together",
}


def union_presets(paper: TrainConfig, ours: TrainConfig) -> dict[str, TrainConfig]:
    """paper, ours: the presets of one LIBERO suite, for OpenVLA-7B and for a small policy."""
    return {
        "libero-40-openvla-7b": _openvla(paper),
        "libero-40-tiny": _tiny(ours),
    }


def _openvla(paper: TrainConfig) -> TrainConfig:
    """The paper's settings on all forty tasks; each suite keeps its own horizon and its own statistics.

    No checkpoint of OpenVLA's authors is for more than one suite, so none is named. The curriculum has a floor: with
    forty tasks the paper's formula alone would hardly play those that are solved, and would not hear of it when they
    are forgotten.
    """
    return replace(
        paper,
        env=replace(benchmark_env(SUITE), num_envs=40),
        policy=replace(paper.policy, checkpoint="", unnorm_key=""),
        curriculum=replace(paper.curriculum, floor=0.005),
        eval=EvalConfig(split="all"),
    )


def _tiny(ours: TrainConfig) -> TrainConfig:
    return replace(
        ours,
        env=replace(laptop_env(SUITE), num_envs=16),
        rollout=RolloutConfig(turns=80),
        curriculum=replace(ours.curriculum, floor=0.005),
    )
