"""Names of before: configurations saved under them still load, and options under them still work.

One table, by dataclass. `renamed` brings saved fields up to date; the command line derives its old options from the
same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLD_FIELDS: Mapping[str, Mapping[str, str]] = {
    "PPOConfig": {"imitation_coef": "self_imitation_coef"},
    "PolicyConfig": {"pictures": "images"},
    "ModelConfig": {"pictures": "images"},
    "ProcessRewardConfig": {"judge": "model"},
    "BestOfConfig": {"judge": "reward_model"},
    "EvalArguments": {"judge": "reward_model"},
    "AblationConfig": {"judge": "reward_model"},
}
"""Class name -> old field -> field."""


def renamed(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Saved fields of the dataclass `cls` under their present names."""
    old = OLD_FIELDS.get(cls.__name__, {})
    return {old.get(name, name): value for name, value in values.items()}
