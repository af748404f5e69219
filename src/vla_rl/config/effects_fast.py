"""When options of FAST tokens have no effect: a part of the table of `effects`."""

from __future__ import annotations

from typing import Any

from vla_rl.config.effect import Effect


def _written(config: Any) -> bool:
    return config.actions == "fast"


def _fitted(config: Any) -> bool:
    return not config.fast.tokenizer


FAST: tuple[Effect, ...] = (
    Effect(("fast",), _written, "FAST tokens are made with --actions fast"),
    Effect(
        ("fast.vocabulary", "fast.scale"),
        _fitted,
        "the tokenizer given with fast.tokenizer says it",
    ),
)
