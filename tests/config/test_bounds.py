"""Every number of every configuration has bounds, and one function checks them."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import typing
from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf

import vla_rl.cli.arguments
import vla_rl.config
from vla_rl.config import ConfigError, EnvConfig, LoraConfig, PPOConfig, TrainConfig, tiny_model
from vla_rl.config.bounds import (
    INT64,
    Config,
    Count,
    OrZero,
    Seed,
    Share,
    bounds_in_words,
    bounds_of,
    declared,
    fault,
    without_bounds,
)
from vla_rl.config.docstrings import field_docs
from vla_rl.config.serialize import from_json, to_json

MODULES = [
    vla_rl.cli.arguments,
    *(
        importlib.import_module(found.name)
        for found in pkgutil.iter_modules(vla_rl.config.__path__, "vla_rl.config.")
    ),
]
CLASSES = [
    cls
    for module in MODULES
    for cls in vars(module).values()
    if isinstance(cls, type) and issubclass(cls, Config) and cls is not Config
    if cls.__module__ == module.__name__
]
MODEL = tiny_model()
EXAMPLES: dict[str, Any] = {
    "VisionTowerConfig": MODEL.dino,
    "LanguageConfig": MODEL.language,
    "ModelConfig": MODEL,
}


def example(cls: type[Any]) -> Any:
    """A configuration with its defaults, and a word for each field that has none."""
    if cls.__name__ in EXAMPLES:
        return EXAMPLES[cls.__name__]
    needed = [
        f for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING
    ]
    return cls(**{f.name: typing.get_type_hints(cls)[f.name]("x") for f in needed})


class Number(NamedTuple):
    """A field that holds a number, or several."""

    cls: type[Any]
    name: str
    hint: Any

    @property
    def kind(self) -> Any:
        return without_bounds(self.hint)


def numbers() -> list[Number]:
    found = []
    for cls in CLASSES:
        for name, hint in declared(cls).items():
            kind = without_bounds(hint)
            if get_origin(kind) is tuple:
                kind = without_bounds(get_args(kind)[0])
            if kind in (int, float):
                found.append(Number(cls, name, hint))
    return found


NUMBERS = numbers()
SHIFTED = (
    "ImagePreprocessing",
    "VisionTowerConfig.mean",
)  # the mean of a colour may have either sign


def test_all_dataclasses_of_the_configuration_are_checked() -> None:
    all_of_them = {
        cls
        for module in MODULES
        for cls in vars(module).values()
        if isinstance(cls, type)
        and dataclasses.is_dataclass(cls)
        and cls.__module__ == module.__name__
    }
    assert all_of_them - {OrZero} == set(CLASSES)
    assert len(NUMBERS) > 130


@pytest.mark.parametrize("field", NUMBERS, ids=lambda f: f"{f.cls.__name__}.{f.name}")
def test_every_number_has_a_least_value_and_keeps_to_it(field: Number) -> None:
    config, (cls, name, hint) = example(field.cls), field
    several = get_origin(field.kind) is tuple
    item = get_args(field.kind)[0] if several else hint
    bounds = bounds_of(item)
    if f"{cls.__name__}.{name}" not in SHIFTED:
        assert bounds.low is not None, "a number without a least value"
    kind = int if without_bounds(item) is int else float
    wrong = [math.nan, math.inf, -math.inf] if kind is float else [2**63, 10**40, 1.5]
    for limit, included, step in (
        (bounds.low and (*bounds.low, -1)) or (None, False, 0),
        (bounds.high and (*bounds.high, 1)) or (None, False, 0),
    ):
        if limit is not None:
            beyond = limit + step if kind is int else math.nextafter(limit, math.inf * step)
            wrong.append(beyond if included else kind(limit))
    for value in [*wrong, True, "1", None]:
        if (value is None and hint is not item) or (value == 0 and bounds.or_zero):
            continue
        if value is None and fault(hint, None) is None:
            continue  # an option that may be left out
        given = tuple([value] * len(getattr(config, name))) if several else value
        if given == ():
            given = (value,)
        with pytest.raises(ConfigError, match=rf"{name}.*: expected .*, got ") as caught:
            replace(config, **{name: given})
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_has_a_docstring(cls: type[Any]) -> None:
    fields = {field.name for field in dataclasses.fields(cls)}
    assert fields - field_docs(cls).keys() == set()
    for name, text in field_docs(cls).items():
        assert text.endswith((".", ")")), f"{name}: {text!r} is no sentence"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PPOConfig(epochs=0), "ppo.epochs: expected a whole number of at least 1, got 0"),
        (
            lambda: PPOConfig(gamma=math.nan),
            "ppo.gamma: expected a finite number from 0 to 1, got nan",
        ),
        (
            lambda: PPOConfig(dual_clip=0.5),
            "ppo.dual_clip: expected 0, or a number above 1, got 0.5",
        ),
        (
            lambda: LoraConfig(dropout=1.0),
            "policy.lora.dropout: expected a number of at least 0 and below 1, got 1.0",
        ),
        (lambda: EnvConfig(suite=3), "env.suite: expected a text, got 3"),  # type: ignore[arg-type]
        (lambda: EnvConfig(suite="a\0b"), r"env.suite: expected a text, got 'a\x00b'"),
        (lambda: EnvConfig(suite="a\udcff"), r"env.suite: expected a text, got 'a\udcff'"),
        (
            lambda: PPOConfig(normalize_advantages=1),
            "ppo.normalize_advantages: expected true or false, got 1",
        ),  # type: ignore[arg-type]
        (lambda: TrainConfig(env=None), "env: expected an EnvConfig, got None"),  # type: ignore[arg-type]
        (
            lambda: PPOConfig(ratio="tokn"),  # type: ignore[arg-type]
            "ppo.ratio: expected one of token, action, got 'tokn'. Did you mean 'token'?",
        ),
    ],
)
def test_what_is_said(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, ""),
        (Count, "at least 1"),
        (Share, "from 0 to 1"),
        (Seed, "from 0 to 2^63 - 1"),
        (Count | None, "at least 1"),
        (Annotated[float, Gt(0), Lt(0.5)], "above 0 and below 0.5"),
        (Annotated[float, Ge(2), Lt(3.5)], "at least 2 and below 3.5"),
        (Annotated[float, Gt(1), OrZero()], "0, or above 1"),
        (Annotated[float, Gt(0), Le(1e30)], "above 0 and at most 1e+30"),
        (Annotated[int, Le(10_000_000)], "at most 10000000"),
        (tuple[Count, ...], "each at least 1"),
        (tuple[str, ...], ""),
        (Literal["a"], ""),
    ],
)
def test_bounds_in_words(hint: Any, words: str) -> None:
    assert bounds_in_words(hint) == words


def test_what_no_configuration_uses_is_a_defect() -> None:
    with pytest.raises(TypeError, match="bound"):
        bounds_of(Annotated[int, MultipleOf(2)])
    with pytest.raises(TypeError, match="unions"):
        without_bounds(int | str)
    with pytest.raises(TypeError, match="do not support the type"):
        fault(dict[str, int], {})


def test_zero_is_allowed_where_it_stands_for_something() -> None:
    assert PPOConfig(dual_clip=0.0).dual_clip == 0
    assert PPOConfig(dual_clip=3.0).dual_clip == 3
    assert PPOConfig(micro_batch=-1).micro_batch == -1


def test_numbers_that_python_takes_for_numbers_are_numbers() -> None:
    assert PPOConfig(gamma=1).gamma == 1
    with pytest.raises(ConfigError, match="got a number of more than 40 digits"):
        PPOConfig(epochs=10**5000)
    # no float holds it: JSON may write it all the same
    with pytest.raises(ConfigError, match="value_coef: expected a finite number of at least 0"):
        from_json(TrainConfig, {"ppo": {"value_coef": 10**400}})


def test_the_largest_seed_works() -> None:
    config = TrainConfig()
    saved = to_json(replace(config, run=replace(config.run, seed=INT64)))
    assert from_json(TrainConfig, saved).run.seed == INT64
