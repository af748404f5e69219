"""When options of FAST tokens have no effect: a part of the table of `effects`."""

from __future__ import annotations

from vla_rl.config.effect import Effect

FAST = (
    Effect(("fast",), lambda c: c.actions == "fast", "FAST tokens are made with --actions fast"),
    Effect(
        ("fast.vocabulary", "fast.scale"),
        lambda c: not c.fast.tokenizer,
        "the tokenizer given with fast.tokenizer says it",
    ),
)
