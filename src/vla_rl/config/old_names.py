"""Names of before: configurations saved under them still load, and options under them still work.

One table, by dataclass. `renamed` brings saved fields up to date; the command line derives its old options from the
same table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Change = Callable[[Any], dict[str, Any]]
"""From an old value to the fields that say the same today."""


def _process_reward(kind: str, model: str) -> Change:
    """One field was both: `simulator`, or the folder of a reward model."""
    return lambda value: {kind: "simulator"} if value == "simulator" else {model: value}


def _chooser(name: str) -> Change:
    """`judge` was the chooser that asks a reward model; a list holds several choosers."""

    def change(value: Any) -> dict[str, Any]:
        if isinstance(value, list | tuple):
            return {name: ["reward-model" if item == "judge" else item for item in value]}  # pyright: ignore[reportUnknownVariableType]
        return {name: "reward-model" if value == "judge" else value}

    return change


_REWARD = _process_reward("kind", "model")
_ABLATED_REWARD = _process_reward("reward_kind", "reward_model")

OLD_FIELDS: Mapping[str, Mapping[str, str | Change]] = {
    "PPOConfig": {"imitation_coef": "self_imitation_coef"},
    "PolicyConfig": {"pictures": "images"},
    "ModelConfig": {"pictures": "images"},
    "ProcessRewardConfig": {"judge": _REWARD, "model": _REWARD},
    "BestOfConfig": {"judge": "reward_model", "chooser": _chooser("chooser")},
    "EvalArguments": {"judge": "reward_model", "chooser": _chooser("chooser")},
    "ScalingConfig": {"choosers": _chooser("choosers")},
    "AblationConfig": {"judge": _ABLATED_REWARD, "reward_model": _ABLATED_REWARD},
}
"""Class name -> old field -> field, or how the fields of today follow from the old value.

A field that kept its name stands here too, where one of its values has another name now."""


def renamed(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Saved fields of the dataclass `cls` under their present names."""
    changes = OLD_FIELDS.get(cls.__name__, {})
    result: dict[str, Any] = {}
    for name, value in values.items():
        change = changes.get(name, name)
        result |= {change: value} if isinstance(change, str) else change(value)
    return result
