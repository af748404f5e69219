"""Presets of GRPO and TPO: the runs of PPO's presets with another algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vla_rl.config import GRPOConfig, OptimizerConfig, TPOConfig, TrainConfig

_LIBERO = ("spatial", "object", "goal", "10")

# SimpleVLA-RL (arXiv 2509.09674) and its code
_SIMPLE_VLA_RL = GRPOConfig(
    group_size=8,
    groups=64,
    extra_groups=64,  # theirs draws on without an end
    keep="mixed",  # mean success in [0.1, 0.9], which of 8 episodes is the same
    advantage="normalized",
    weighting="episodes",
    epochs=1,
    minibatch=128,
    micro_batch=-1,
    ratio="token",
    clip_low=0.2,
    clip_high=0.28,
    kl_coef=0.0,
    entropy_coef=0.0,
    recompute_log_probs=True,  # bfloat16, as in the preset of PPO
    logprob_tolerance=0.5,
)
_SIMPLE_VLA_RL_TEMPERATURE = 1.6
_ADAPTERS = OptimizerConfig(learning_rate=1e-4, warmup_steps=0)  # all weights: 5e-6

# GRAPE (arXiv 2411.19309) and its code
_GRAPE = TPOConfig(
    group_size=10,  # theirs: up to so many, until one success and one failure are there
    groups=32,
    extra_groups=0,
    pairs=4,
    success_weight=5.0,
    reward_weight=1.0,
    likelihood_weight=0.01,
    beta=0.1,
    reference="start",
    window=0,  # theirs compares windows of 8 steps
    minibatch=8,
    micro_batch=-1,
)
_GRAPE_OPTIMIZER = OptimizerConfig(learning_rate=2e-5, warmup_steps=0)

# Against the start, or without imitation, the chosen episodes lose likelihood with the rejected ones until nothing
# succeeds (measured: docs/results/baselines.md).
_OURS_TPO = TPOConfig(reference="played", self_imitation_coef=1.0)


def group_presets(of_ppo: Mapping[str, TrainConfig]) -> dict[str, TrainConfig]:
    """The presets by name, made of those of PPO."""
    toy = of_ppo["toy"]
    # at the temperature and learning rate at which they were measured: docs/results/baselines.md
    ours = TrainConfig()
    mt5 = replace(of_ppo["metaworld-mt5"], rollout=ours.rollout, optimizer=ours.optimizer)
    found = {
        "toy-grpo": replace(
            toy, algorithm="grpo", grpo=GRPOConfig(groups=16, epochs=2, minibatch=64)
        ),
        "toy-tpo": replace(toy, algorithm="tpo", tpo=_OURS_TPO),
        "metaworld-mt5-grpo": replace(
            mt5,
            algorithm="grpo",
            grpo=GRPOConfig(
                groups=16, extra_groups=16, epochs=2, minibatch=128, self_imitation_coef=0.1
            ),
        ),
        "metaworld-mt5-tpo": replace(
            mt5, algorithm="tpo", tpo=replace(_OURS_TPO, groups=16, extra_groups=16)
        ),
    }
    for suite in _LIBERO:
        ppo = of_ppo[f"libero-{suite}-openvla-7b"]
        found[f"libero-{suite}-openvla-7b-grpo"] = replace(
            ppo,
            algorithm="grpo",
            grpo=_SIMPLE_VLA_RL,
            optimizer=_ADAPTERS,
            rollout=replace(ppo.rollout, temperature=_SIMPLE_VLA_RL_TEMPERATURE),
            curriculum=replace(ppo.curriculum, mode="uniform"),
        )
        found[f"libero-{suite}-openvla-7b-tpo"] = replace(
            ppo,
            algorithm="tpo",
            tpo=_GRAPE,
            optimizer=_GRAPE_OPTIMIZER,
            rollout=replace(ppo.rollout, temperature=1.0),
            curriculum=replace(ppo.curriculum, mode="uniform"),
        )
    return found


GROUP_SUMMARIES: dict[str, str] = {
    "toy-grpo": "the toy with GRPO: groups of episodes instead of a critic",
    "toy-tpo": "the toy with TPO: pairs of episodes, better against worse",
    "metaworld-mt5-grpo": "the five tasks with GRPO",
    "metaworld-mt5-tpo": "the five tasks with TPO",
    "libero-spatial-openvla-7b-grpo": "OpenVLA-7B on LIBERO-Spatial with GRPO, as SimpleVLA-RL",
    "libero-object-openvla-7b-grpo": "the same on LIBERO-Object",
    "libero-goal-openvla-7b-grpo": "the same on LIBERO-Goal",
    "libero-10-openvla-7b-grpo": "the same on LIBERO-10 (Long)",
    "libero-spatial-openvla-7b-tpo": "OpenVLA-7B on LIBERO-Spatial with TPO, as GRAPE",
    "libero-object-openvla-7b-tpo": "the same on LIBERO-Object",
    "libero-goal-openvla-7b-tpo": "the same on LIBERO-Goal",
    "libero-10-openvla-7b-tpo": "the same on LIBERO-10 (Long)",
}
