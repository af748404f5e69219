"""What the fields of a configuration may hold: declared beside each field, checked by one function, shown by --help.

    @dataclass(frozen=True)
    class PPOConfig(Config, group="ppo"):
        epochs: Annotated[int, Ge(1)] = 2
        gamma: Share = 0.99

    PPOConfig(epochs=0)   ConfigError: ppo.epochs: expected a whole number of at least 1, got 0

Numbers must be finite, and whole numbers fit in 64 bits. Relations between fields are `require`d in `__post_init__`,
after `super().__post_init__()`. pydantic understands the same annotations and checks what comes from outside
(docs/decisions/013); here it would double what `--help` and every simulator process wait for.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt, Le, Lt

from vla_rl.config.errors import ConfigError, nearest

INT64 = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class OrZero:
    """A bound that adds 0, which stands for off, greedy or automatic, to what the others allow."""


Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Seed = Annotated[int, Ge(0), Le(INT64)]
"""What torch, numpy and the keyed streams all take."""
Share = Annotated[float, Ge(0), Le(1)]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Temperature = Annotated[float, Ge(0.01), Le(100)]
"""Of sampling. Logits divided by less overflow."""
TemperatureOrGreedy = Annotated[float, Ge(0.01), Le(100), OrZero()]
LearningRate = Annotated[float, Gt(0), Le(1e30)]
"""A step of more overflows in float32."""
WeightDecay = Annotated[float, Ge(0), Le(1)]
Pixels = Annotated[int, Ge(1), Le(4096)]
PixelsOrStored = Annotated[int, Ge(0), Le(4096)]
Shift = Annotated[int, Ge(0), Le(256)]
"""Pixels by which images are shifted."""
ActionChunk = Annotated[int, Ge(1), Le(1024)]
Candidates = Annotated[int, Ge(1), Le(65536)]
Workers = Annotated[int, Ge(0), Le(1024)]
"""Processes or threads; 0 leaves the number to the program."""


class OutOfBoundsError(ConfigError):
    """A field holds what its declaration excludes. `at` says the same of the field under another name."""

    def __init__(self, owner: type[Any], field: str, fault: str, group: str = "") -> None:
        self.owner, self.field, self.fault = owner, field, fault
        super().__init__(f"{group}.{field}{fault}" if group else f"{field}{fault}")

    def at(self, name: str) -> ConfigError:
        """The error of the field that the reader knows as `name`."""
        return ConfigError(f"{name}{self.fault}")


class Config:
    """Base of the configuration dataclasses: every field is checked against its declaration."""

    group: ClassVar[str] = ""
    """Where a training configuration has it, for errors: `ppo`."""
    saved: ClassVar[tuple[str, ...]] = ()
    """Fields without which a file is no saved configuration, whatever their defaults."""

    def __init_subclass__(cls, group: str = "", saved: tuple[str, ...] = ()) -> None:
        super().__init_subclass__()
        cls.group, cls.saved = group, saved

    def __post_init__(self) -> None:
        check(self)


def check(config: Any) -> None:
    """Raise OutOfBoundsError for the first field of a dataclass that holds what its declaration excludes."""
    owner = cast("type[Any]", type(config))
    for name, hint in declared(owner).items():
        found = fault(hint, getattr(config, name))
        if found is not None:
            raise OutOfBoundsError(owner, name, str(found), getattr(owner, "group", ""))


@functools.cache
def declared(cls: type[Any]) -> dict[str, Any]:
    """The declared type of each field of a dataclass, bounds included."""
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


class Fault(NamedTuple):
    """What is wrong with a value: where inside it (`[1]`), what was expected, what came."""

    where: str
    expected: str
    found: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, got {self.found}{self.hint}"


def fault(hint: Any, value: object) -> Fault | None:
    """What is wrong with `value` in a field declared as `hint`; None where it fits."""
    if value is None and _is_optional(hint):
        return None
    hint, bounds = without_bounds(hint), bounds_of(hint)
    origin = get_origin(hint)
    if origin is Literal:
        choices = get_args(hint)
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return None
        known = [str(choice) for choice in choices]
        close = f".{nearest(value, known)}" if isinstance(value, str) else ""
        return Fault("", f"one of {', '.join(known)}", shown(value), close)
    if origin is tuple:
        return _tuple_fault(get_args(hint), value)
    if hint in _KINDS:
        return (
            None
            if _KINDS[hint](value) and bounds.hold(value)
            else _scalar_fault(hint, bounds, value)
        )
    if isinstance(hint, type) and isinstance(value, hint):
        return None
    if isinstance(hint, type):
        kind = "path" if hint is Path else hint.__name__
        return Fault("", f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}", shown(value))
    raise TypeError(f"configurations do not support the type {hint}")


def _tuple_fault(items: tuple[Any, ...], value: object) -> Fault | None:
    if not isinstance(value, (tuple, list)):
        return Fault("", "a list", shown(value))
    given = cast("Sequence[object]", value)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(given)
    if len(given) != len(items):
        return Fault("", f"{len(items)} values", str(len(given)))
    for at, (hint, item) in enumerate(zip(items, given, strict=True)):
        found = fault(hint, item)
        if found is not None:
            return found._replace(where=f"[{at}]{found.where}")
    return None


def _scalar_fault(kind: Any, bounds: Bounds, value: object) -> Fault:
    words, limits = _WORDS[kind], bounds.words()
    if kind is float and isinstance(value, (int, float)) and not _is_finite(value):
        words = "a finite number"
    if kind is int and _is_int(value) and abs(cast(int, value)) > INT64 and not bounds.high:
        limits = "of at most 2^63 - 1 in size"
    zero = "0, or " if bounds.or_zero else ""
    return Fault("", f"{zero}{words} {limits}".rstrip(), shown(value))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: int | float) -> bool:
    return (
        abs(value) <= sys.float_info.max
    )  # a NaN compares false; an int may be larger than any float


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_int(value)


def _is_text(value: object) -> bool:
    """No half of a character, which no file can hold, and no NUL, which no path may."""
    return (
        isinstance(value, str)
        and "\0" not in value
        and not any("\ud800" <= c <= "\udfff" for c in value)
    )


_KINDS: dict[Any, Callable[[object], bool]] = {
    int: lambda value: _is_int(value) and abs(cast(int, value)) <= INT64,
    float: lambda value: _is_number(value) and _is_finite(cast(float, value)),
    bool: lambda value: isinstance(value, bool),
    str: _is_text,
}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class Bounds(NamedTuple):
    """The least and the greatest value of a number, each with whether it is itself allowed; and 0 beside them."""

    low: tuple[float, bool] | None = None
    high: tuple[float, bool] | None = None
    or_zero: bool = False

    def hold(self, value: object) -> bool:
        """Whether `value`, a number, lies within."""
        number = cast(float, value)
        if self.or_zero and number == 0:
            return True
        above = self.low is None or number > self.low[0] or (self.low[1] and number == self.low[0])
        return above and (
            self.high is None or number < self.high[0] or (self.high[1] and number == self.high[0])
        )

    def words(self) -> str:
        """`of at least 1`, `above 0 and below 1`, `from 0 to 1`; empty without bounds."""
        low, high = self.low, self.high
        if low and high and low[1] and high[1]:
            return f"from {_number(low[0])} to {_number(high[0])}"
        parts = [f"{'of at least' if low[1] else 'above'} {_number(low[0])}"] if low else []
        parts += [f"{'of at most' if high[1] else 'below'} {_number(high[0])}"] if high else []
        return " and ".join(parts)


def bounds_of(hint: Any) -> Bounds:
    """The bounds in an annotation, `int`, `Annotated[int, Ge(1)]` or `Annotated[int, Ge(1)] | None`."""
    bounds = Bounds()
    for part in _metadata(hint):
        match part:
            case Ge():
                bounds = bounds._replace(low=(cast(float, part.ge), True))
            case Gt():
                bounds = bounds._replace(low=(cast(float, part.gt), False))
            case Le():
                bounds = bounds._replace(high=(cast(float, part.le), True))
            case Lt():
                bounds = bounds._replace(high=(cast(float, part.lt), False))
            case OrZero():
                bounds = bounds._replace(or_zero=True)
            case _:
                raise TypeError(f"configurations do not support the bound {part!r}")
    return bounds


def bounds_in_words(hint: Any) -> str:
    """The bounds of a field for its help, `at least 1`; those of its items for a list. Empty without."""
    bounds = bounds_of(hint)
    words = bounds.words().replace("of at", "at")
    words = f"0, or {words}" if bounds.or_zero else words
    inner = without_bounds(hint)
    if not words and get_origin(inner) is tuple:
        items = {bounds_in_words(item) for item in get_args(inner) if item is not Ellipsis} - {""}
        return f"each {items.pop()}" if len(items) == 1 else ""
    return words


def _metadata(hint: Any) -> Iterator[Any]:
    for part in get_args(hint) if _is_optional(hint) else (hint,):
        if get_origin(part) is Annotated:
            yield from part.__metadata__


def without_bounds(hint: Any) -> Any:
    """A field's type without bounds and without `| None`."""
    if _is_optional(hint):
        inner = [option for option in get_args(hint) if option is not type(None)]
        if len(inner) != 1:
            raise TypeError(f"of unions, configurations support only `X | None`, not {hint}")
        hint = inner[0]
    return hint.__origin__ if get_origin(hint) is Annotated else hint


def _is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _number(value: float) -> str:
    if value == INT64:
        return "2^63 - 1"
    if math.fabs(value) < 1e6:
        return f"{value:g}"
    # typing takes Le(1e6) and Le(1_000_000) for the same, and hands out whichever came first
    return str(int(value) if math.fabs(value) < 2**53 and value == int(value) else value)


def shown(value: object) -> str:
    """A value in at most 60 characters. Python itself refuses to write out a huge integer."""
    if _is_int(value) and abs(cast(int, value)) >= 10**40:
        return "a number of more than 40 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
