"""Names of before: configurations saved under them still load, and options under them still work.

One table, by dataclass. `renamed` brings saved fields up to date; the command line derives its old options from the
same table. A dotted name is a path into nested dataclasses, so that a field may move from one to another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from vla_rl.config.errors import ConfigError

OLD_FIELDS: Mapping[str, Mapping[str, str]] = {
    "TrainConfig": {
        "ppo.iterations": "schedule.iterations",
        "ppo.minutes": "schedule.minutes",
        "ppo.turns": "rollout.turns",
        "ppo.temperature": "rollout.temperature",
        "ppo.learning_rate": "optimizer.learning_rate",
        "ppo.adam_beta2": "optimizer.adam_beta2",
        "ppo.adam_eps": "optimizer.adam_eps",
        "ppo.weight_decay": "optimizer.weight_decay",
        "ppo.warmup_steps": "optimizer.warmup_steps",
        "ppo.final_learning_rate": "optimizer.final_learning_rate",
        "ppo.max_grad_norm": "optimizer.max_grad_norm",
    },
    "PPOConfig": {"imitation_coef": "self_imitation_coef"},
    "PolicyConfig": {"pictures": "images"},
    "ModelConfig": {"pictures": "images"},
    "ProcessRewardConfig": {"judge": "model"},
    "BestOfConfig": {"judge": "reward_model"},
    "EvalArguments": {"judge": "reward_model"},
    "AblationConfig": {"judge": "reward_model"},
}
"""Class name -> old field -> field."""

NewValue = Callable[[Any], dict[str, Any]]
"""From the value of a field to the fields that say the same today."""


def _reward_model(kind: str, model: str) -> NewValue:
    """One field was both a folder and, as the word `simulator`, a kind of reward."""
    return lambda value: {kind: "simulator"} if value == "simulator" else {model: value}


def _chooser(field: str) -> NewValue:
    """`judge` was the chooser that asks a reward model; a list holds several choosers."""

    def today(value: Any) -> dict[str, Any]:
        if isinstance(value, list | tuple):
            names = cast("list[Any]", value)
            return {field: ["reward-model" if name == "judge" else name for name in names]}
        return {field: "reward-model" if value == "judge" else value}

    return today


OLD_VALUES: Mapping[str, Mapping[str, NewValue]] = {
    "ProcessRewardConfig": {"model": _reward_model("kind", "model")},
    "AblationConfig": {"reward_model": _reward_model("reward_kind", "reward_model")},
    "BestOfConfig": {"chooser": _chooser("chooser")},
    "EvalArguments": {"chooser": _chooser("chooser")},
    "ScalingConfig": {"choosers": _chooser("choosers")},
}
"""Class name -> field, by its present name, of which a value is said otherwise today."""


def trackers_of_switches(trackers: str, switches: Mapping[str, Any]) -> str:
    """`run.trackers` after the switches of before, `tensorboard` and `wandb`, were set in it."""
    names = [name for name in trackers.split(",") if name and name != "none"]
    for switch, on in switches.items():
        same = ("tensorboard", "auto") if switch == "tensorboard" else (switch,)
        if on and not set(same) & set(names):
            names.append(same[-1])
        elif not on:
            names = [name for name in names if name not in same]
    return ",".join(names) or "none"


OLD_SWITCHES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "RunConfig": ("trackers", ("tensorboard", "wandb"))
}
"""Class name -> the field that takes the place of several switches, and these."""

OLD_COMMANDS: Mapping[str, str] = {"curve": "learning-curve", "scaling": "test-time"}


def renamed(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Saved fields of the dataclass `cls` as they are called today; `values` itself is not changed.

    What has another shape than a saved configuration stays as it is. Raises ConfigError where a field is given under
    its old and its present name.
    """
    fields = dict(values)
    for old, new in OLD_FIELDS.get(cls.__name__, {}).items():
        old_name, new_name = old.rpartition(".")[2], new.rpartition(".")[2]
        source = _parent(fields, old)
        if source is None or old_name not in source:
            continue
        target = _parent(fields, new, make=True)
        if target is None:
            continue
        if new_name in target:
            raise ConfigError(f"{old} is called {new} now, and both are given: leave out {old}")
        target[new_name] = source.pop(old_name)
    fields = _without_switches(cls, fields)
    for field, today in OLD_VALUES.get(cls.__name__, {}).items():
        if field in fields:
            fields |= today(fields.pop(field))
    return fields


def _without_switches(cls: type[Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Switches of before as the one field that stands for them; a value that is no switch stays, to be refused."""
    new, switches = OLD_SWITCHES.get(cls.__name__, ("", ()))
    given = {name: fields[name] for name in switches if isinstance(fields.get(name), bool)}
    if not given:
        return fields
    if new in fields:
        old = next(iter(given))
        raise ConfigError(f"{old} is part of {new} now, and both are given: leave out {old}")
    kept = {name: value for name, value in fields.items() if name not in given}
    return kept | {new: trackers_of_switches("auto", given)}


def _parent(fields: dict[str, Any], path: str, make: bool = False) -> dict[str, Any] | None:
    """The mapping that holds the last name of `path`, copied into `fields`; None where there is none."""
    for name in path.split(".")[:-1]:
        inner = fields.get(name, {} if make else None)
        if not isinstance(inner, Mapping):
            return None
        fields[name] = dict(cast("Mapping[str, Any]", inner))
        fields = fields[name]
    return fields
