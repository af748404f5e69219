"""When the options count of the commands that serve a policy and learn from logged episodes: a part of `effects`."""

# pyright: basic
# A condition looks at the configuration of whatever command it belongs to.

from __future__ import annotations

from vla_rl.config.effect import Effect

PREFER = (
    Effect(
        ("policy.scratch",),
        lambda c: False,
        "preferences improve a policy that can act already; give it with policy.checkpoint",
    ),
    Effect(
        ("policy.critic", "policy.decode_graphs"),
        lambda c: False,
        "nothing is played, and no critic is trained; set it in `vla-rl train`",
        "warning",
    ),
    Effect(
        ("policy.lora.dropout",),
        lambda c: False,
        "preferences compare how likely an episode was at the start and is now, which must not depend on what is "
        "dropped; give it to `vla-rl sft`",
    ),
    Effect(
        ("reward_weight",),
        lambda c: bool(c.reward_model),
        "success alone ranks the episodes; give a process reward model with --reward-model",
    ),
)
SERVE = (
    Effect(
        ("seed",),
        lambda c: c.temperature > 0,
        "a greedy policy draws nothing at random; it counts with --temperature above 0",
        "warning",
    ),
    Effect(
        ("limits.beyond",),
        lambda c: c.limits.any,
        "no action is limited; set --limits.low, --limits.high, --limits.change or a box",
    ),
    Effect(
        ("require_sequence",),
        lambda c: c.protocol == "openpi",
        "vla-evaluation-harness has numbers of its own; it belongs to --protocol openpi",
    ),
)
