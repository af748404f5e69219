"""Configurations survive JSON, and damaged JSON is answered with the name of the field."""

from __future__ import annotations

import copy
import dataclasses
import json
import typing
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vla_rl.config
from vla_rl.config import (
    OPENVLA_7B,
    ConfigError,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RolloutConfig,
    ScheduleConfig,
    TrainConfig,
    tiny_model,
)
from vla_rl.config.quickstart import QuickstartConfig
from vla_rl.config.serialize import differences, from_json, to_json

CONFIGS: list[Any] = [
    OPENVLA_7B,
    tiny_model(),
    QuickstartConfig(),
    PolicyConfig(lora=LoraConfig(rank=4)),
    *(
        cls()
        for name in vla_rl.config.__all__
        if dataclasses.is_dataclass(cls := getattr(vla_rl.config, name)) and isinstance(cls, type)
        if all(
            f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
            for f in dataclasses.fields(cls)
        )
    ),
]


def changed(data: st.DataObject, config: Any) -> Any:
    """`config` with random legal values in random fields: a value the dataclass refuses is dropped."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        old = getattr(config, field.name)
        new = data.draw(values(hints[field.name], old, data), label=field.name)
        try:
            config = dataclasses.replace(config, **{field.name: new})
        except ConfigError:
            continue
    return config


def values(hint: Any, old: Any, data: st.DataObject) -> st.SearchStrategy[Any]:
    if dataclasses.is_dataclass(old):
        return st.just(changed(data, old))
    if typing.get_origin(hint) is Literal:
        return st.sampled_from(typing.get_args(hint))
    kinds: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(0, 2**40),
        float: st.floats(0, 1e6, allow_nan=False),
        str: st.text(max_size=20),
    }
    if hint in kinds:
        return kinds[hint]
    if hint == tuple[float, float, float]:
        return st.tuples(kinds[float], kinds[float], kinds[float])
    if hint == tuple[int, ...]:
        return st.lists(st.integers(1, 64), max_size=4).map(tuple)
    return st.just(old)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_round_trip_through_a_json_text(config: Any, data: st.DataObject) -> None:
    varied = changed(data, config)
    text = json.dumps(to_json(varied))
    assert from_json(type(varied), json.loads(text)) == varied


def test_the_json_is_the_plain_nested_configuration() -> None:
    data = to_json(TrainConfig())
    assert data["env"]["suite"] == "mt5"
    assert data["ppo"]["gae_lambda"] == 0.8
    assert data["policy"]["lora"] is None
    assert data["policy"]["critic"]["kind"] == "separate"
    assert to_json(tiny_model())["dino"]["stem_channels"] == [16, 32, 64]


def test_missing_fields_take_their_defaults_and_integers_are_fine_as_numbers() -> None:
    config = from_json(TrainConfig, {"ppo": {"gamma": 1}})
    assert config == dataclasses.replace(
        TrainConfig(), ppo=dataclasses.replace(TrainConfig().ppo, gamma=1.0)
    )
    assert isinstance(config.ppo.gamma, float)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"ppo": {"gama": 0.9}}, ["ppo.gama: no such field", "'gamma'"]),
        ({"pppo": {}}, ["pppo: no such field", "'ppo'"]),
        ({"ppo": {"gamma": "0.9"}}, ["ppo.gamma: expected a number from 0 to 1, got '0.9'"]),
        ({"ppo": {"gamma": None}}, ["ppo.gamma: expected a number from 0 to 1, got None"]),
        ({"ppo": {"epochs": 2.5}}, ["ppo.epochs: expected a whole number of at least 1, got 2.5"]),
        (
            {"ppo": {"epochs": True}},
            ["ppo.epochs: expected a whole number of at least 1, got True"],
        ),
        ({"ppo": {"gamma": False}}, ["ppo.gamma: expected a number from 0 to 1, got False"]),
        ({"run": {"wandb": 1}}, ["run.wandb: no such field"]),
        ({"run": {"name": 3}}, ["run.name: expected a text, got 3"]),
        ({"ppo": {"ratio": "tokn"}}, ["ppo.ratio: expected one of token, action", "'token'"]),
        ({"policy": {"lora": {"rnk": 3}}}, ["policy.lora.rnk: no such field", "'rank'"]),
        ({"policy": {"lora": 3}}, ["policy.lora: expected an object"]),
        ({"env": []}, ["env: expected an object with fields, got []"]),
        ({"ppo": {"gamma": 2.0}}, ["ppo.gamma: expected a number from 0 to 1, got 2.0"]),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(data: Any, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(TrainConfig, data)
    for part in parts:
        assert part in str(caught.value)


def test_tuples_are_checked_item_by_item_and_required_fields_are_required() -> None:
    tower = to_json(tiny_model().dino)
    cls = type(tiny_model().dino)
    with pytest.raises(ConfigError, match="mean: expected 3 values, got 2"):
        from_json(cls, tower | {"mean": [0.1, 0.2]})
    with pytest.raises(
        ConfigError, match=r"stem_channels\[1\]: expected a whole number from 1 to 131072, got 'x'"
    ):
        from_json(cls, tower | {"stem_channels": [1, "x"]})
    with pytest.raises(ConfigError, match="mean: expected a list, got 3"):
        from_json(cls, tower | {"mean": 3})
    with pytest.raises(ConfigError, match="width: missing, and it has no default"):
        from_json(cls, {})


def test_only_dataclasses_of_plain_values_are_configurations() -> None:
    @dataclasses.dataclass
    class Odd:
        thing: Any

    with pytest.raises(TypeError, match="cannot hold a set"):
        to_json(Odd({1}))
    with pytest.raises(TypeError, match="expected an instance"):
        to_json(TrainConfig)


def test_differences_are_named_by_their_dotted_path() -> None:
    one = TrainConfig()
    two = replace(one, rollout=replace(one.rollout, turns=7), run=replace(one.run, name="x"))
    assert differences(one, one) == {}
    assert differences(one, two) == {"rollout.turns": (one.rollout.turns, 7), "run.name": ("", "x")}
    # lora is none in one, a group in the other
    three = replace(one, policy=replace(one.policy, lora=LoraConfig()))
    assert set(differences(one, three)) == {"policy.lora"}


def test_fields_of_before_load_where_they_are_now() -> None:
    """A configuration as it was saved while PPO's dataclass also held the schedule, the rollout and the optimizer."""
    saved = {
        "ppo": {
            "iterations": 7,
            "minutes": 2,
            "turns": 9,
            "temperature": 1.5,
            "learning_rate": 1e-3,
            "adam_beta2": 0.9,
            "adam_eps": 1e-5,
            "weight_decay": 0.1,
            "warmup_steps": 3,
            "final_learning_rate": 0.5,
            "max_grad_norm": 2.0,
            "imitation_coef": 0.3,
            "gamma": 0.9,
        },
        "run": {"seed": 4},
    }
    given = copy.deepcopy(saved)
    config = from_json(TrainConfig, saved)
    assert saved == given, "the caller's data were changed"
    assert config == replace(
        TrainConfig(),
        schedule=ScheduleConfig(iterations=7, minutes=2.0),
        rollout=RolloutConfig(turns=9, temperature=1.5),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, adam_beta2=0.9, adam_eps=1e-5, weight_decay=0.1, warmup_steps=3,
            final_learning_rate=0.5, max_grad_norm=2.0,
        ),
        ppo=replace(TrainConfig().ppo, self_imitation_coef=0.3, gamma=0.9),
        run=replace(TrainConfig().run, seed=4),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"ppo": {"turns": 3}, "rollout": {"turns": 4}}, "ppo.turns is called rollout.turns now"),
        ({"ppo": {"imitation_coef": 1, "self_imitation_coef": 1}}, "imitation_coef is called"),
        ({"ppo": {"turns": 3}, "rollout": 4}, "rollout: expected an object with fields, got 4"),
        ({"ppo": [3]}, r"ppo: expected an object with fields, got \[3\]"),
    ],
)
def test_a_field_of_before_that_has_no_place(saved: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_json(TrainConfig, saved)
