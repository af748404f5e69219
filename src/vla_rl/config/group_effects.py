"""When the options of GRPO and TPO count, and which of PPO's do not count there."""

# pyright: basic
# A condition looks at the configuration of whatever command it belongs to.

from __future__ import annotations

from vla_rl.config.effect import Effect

GROUP_EFFECTS = (
    Effect(
        ("ppo",),
        lambda c: not c.compares_groups,
        "it is PPO's; GRPO and TPO have settings of their own, grpo and tpo",
    ),
    Effect(("grpo",), lambda c: c.algorithm == "grpo", "it belongs to algorithm grpo"),
    Effect(("tpo",), lambda c: c.algorithm == "tpo", "it belongs to algorithm tpo"),
    Effect(
        ("policy.critic",),
        lambda c: not c.compares_groups,
        "GRPO and TPO compare episodes with each other and have no critic; it belongs to algorithm ppo",
    ),
    Effect(
        ("rollout.turns",),
        lambda c: not c.compares_groups,
        "every episode of a group is played to its end; grpo.groups or tpo.groups says how many there are",
    ),
    Effect(
        ("grpo.extra_groups",),
        lambda c: c.grpo.keep == "mixed",
        "with grpo.keep all every group is learned from, and none is replaced",
    ),
    Effect(
        ("grpo.kl_estimator",),
        lambda c: c.grpo.kl_coef > 0,
        "grpo.kl_coef is 0, so there is no KL penalty",
        "warning",
    ),
    Effect(
        ("tpo.reward_weight",),
        lambda c: c.reward.chosen_kind != "success",
        "success is the only reward; give a process reward model with reward.model",
    ),
)
